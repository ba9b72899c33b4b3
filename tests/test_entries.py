"""Which tensors of a checkpoint are the model: entries, prefixes, what is beside them, shards."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import save_torch_state_dict
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pplcnet import WeightsError
from pplcnet._checkpoint import read_checkpoint
from pplcnet._entries import Checkpoint, choose
from pplcnet._errors import Refused
from pplcnet._folder import hashed_files_of
from pplcnet._inert import INERT

STATE = {
    "stem.conv.weight": torch.arange(4.0).reshape(2, 2),
    "stem.bn.running_mean": torch.full((2,), 0.5),
    "fc.weight": torch.ones(3, 2),
    "fc.bias": torch.zeros(3),
}
OTHER = {name: tensor - 1 for name, tensor in STATE.items()}


def under(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_is(found: Checkpoint, state: Mapping[str, Tensor] = STATE) -> None:
    assert list(found.tensors) == list(state)
    assert all(torch.equal(found.tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("content", "entry", "prefix"),
    [
        (STATE, "", ""),
        (under("module."), "", "module."),
        (under("_orig_mod."), "", "_orig_mod."),
        (under("module._orig_mod."), "", "module._orig_mod."),
        (under("_orig_mod.module."), "", "_orig_mod.module."),
        (under("model."), "", "model."),
        (under("backbone."), "", "backbone."),
        (under("encoder."), "", "encoder."),
        (under("Student."), "", "Student."),
        ({"state_dict": STATE}, "state_dict", ""),
        ({"anything": STATE}, "anything", ""),
        ({"state_dict": {"model": under("module.")}}, "state_dict.model", "module."),
        ({"model": STATE, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, "model", ""),
        ({"model": STATE, "opt": {"w_0_moment1": torch.ones(2)}}, "model", ""),
        ({"w": torch.ones(1)}, "", ""),
    ],
)
def test_one_model(content: dict[str, Any], entry: str, prefix: str) -> None:
    found = choose(content)
    assert (found.entry, found.prefix) == (entry, prefix)
    assert_is(found, content if "w" in content else STATE)


def test_mmpretrain_has_two_prefixes() -> None:
    state = {f"{'head.' if n.startswith('fc') else 'backbone.'}{n}": t for n, t in STATE.items()}
    found = choose({"meta": {"epoch": 1}, "state_dict": state})
    assert_is(found)
    assert found.note == "entry state_dict; prefix backbone. and head. removed; not used: meta"


def test_what_lies_beside_is_named() -> None:
    lightning = {
        "epoch": 1,
        "state_dict": {
            **under("model."),
            "criterion.weight": torch.ones(3),
            "metric.tp": torch.tensor(0),
        },
        "hyper_parameters": {"lr": 0.1},
    }
    found = choose(lightning)
    assert_is(found)
    assert found.ignored == ("criterion.*", "metric.*", "epoch", "hyper_parameters")


@pytest.mark.parametrize(
    "prefixed",
    [
        {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)},  # a layer
        {"layers.0.weight": torch.ones(2, 2), "layers.2.weight": torch.ones(2)},  # a sequence
        {"network.0.weight": torch.ones(2), "head.weight": torch.ones(2)},  # timm's VOLO
        {"encoder.ln.weight": torch.ones(2), "heads.head.weight": torch.ones(2)},  # torchvision
        {"head.weight": torch.ones(2), "stem.weight": torch.ones(2)},
    ],
)
def test_what_is_no_prefix(prefixed: dict[str, Tensor]) -> None:
    assert_is(choose(prefixed), prefixed)


SEVERAL = [
    ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict_ema"),
    ({"epoch": 1, "model": STATE, "model_ema": {"n_averaged": torch.tensor(2), **under("module.",
      OTHER)}}, "model_ema"),
    ({**under("Teacher."), **under("Student.", OTHER)}, "Student"),
    ({"model": {**under("teacher."), **under("student.", OTHER)}}, "student"),
    ({"model": {**under("teacher."), **under("student.", OTHER)}}, "model.student"),
    ({"model": {"state_dict": STATE}, "ema": {"state_dict": OTHER}}, "ema"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "name"), SEVERAL)
def test_one_of_several(content: dict[str, Any], name: str) -> None:
    with pytest.raises(Refused) as caught:
        choose(content)
    assert caught.value.found.startswith("it contains 2 models: ")
    assert name in caught.value.found
    assert "--weights-entry" in caught.value.advice
    assert_is(choose(content, name), OTHER)
    with pytest.raises(Refused, match="it has no entry 'best' with a model; it has "):
        choose(content, "best")


def test_only_one_may_be_named() -> None:
    assert_is(choose(under("Student."), "Student"))
    with pytest.raises(Refused, match="it has no entry 'ema' with a model; it has model"):
        choose({"model": STATE}, "ema")
    with pytest.raises(Refused, match=r"2 models: a\.net, b\.net"):
        choose({"a": {"net": STATE}, "b": {"net": OTHER}, "c": OTHER}, "net")


def test_entries_that_contain_themselves() -> None:
    loop: dict[str, Any] = {"model": STATE}
    loop["again"] = loop
    loop["twice"] = STATE
    assert choose(loop).entry == "model"
    wide: dict[str, Any] = {"model": STATE}
    for _ in range(4):
        wide = {**{str(i): wide for i in range(300)}, "model": STATE}
    assert choose(wide).entry  # 300 ** 4 ways to it, each dict seen once


# --- as the tools write them


def network() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=10)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def options() -> argparse.Namespace:
    """What a training script keeps beside the weights."""
    return argparse.Namespace(
        lr=0.5,
        started=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        took=datetime.timedelta(1),
        output=Path("/results"),
        nested=SimpleNamespace(a={1, 2}, b=collections.OrderedDict(c=1)),
        best=np.float64(77.0),
        history=collections.deque([1.0], 3),
        counts=collections.defaultdict(int, a=1),
        kind=float,
    )


@pytest.mark.parametrize("new", [True, False])
def test_options_beside_the_weights(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "w.pth"
    content = {"args": options(), "model": STATE, "at": Path("x"), "when": datetime.date.min}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    found = read_checkpoint(path)
    assert_is(found)
    assert found.ignored == ("args", "at", "when")
    # Nothing is left known to torch.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_options_in_pdparams(tmp_path: Path, protocol: int) -> None:
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    content = {
        "args": options(),
        "net": {
            **under("Student."),
        },
        "when": datetime.date.min,
    }
    content["net"] = {f"Student.{name}": array for name, array in arrays.items()}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content, protocol))
    if protocol == 2:
        # What protocol 2 needs for sets and numbers of NumPy is more than a name.
        content["args"] = argparse.Namespace(lr=0.5, output=Path("/results"))
        (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content, protocol))
    found = read_checkpoint(tmp_path / "w.pdparams")
    assert_is(found)
    assert (found.entry, found.prefix) == ("net", "Student.")


def test_no_class_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins are made, never what they stand for."""
    (tmp_path / "w.pth").write_bytes(saved({"args": options(), "model": STATE}))
    made = []
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_, **__: made.append("Namespace"))
    monkeypatch.setattr(argparse.Namespace, "__setattr__", lambda *_: made.append("Namespace"))
    monkeypatch.setattr(Path, "__init__", lambda *_, **__: made.append("Path"))
    assert_is(read_checkpoint(tmp_path / "w.pth"))
    assert "Namespace" not in made
    assert not any(cls.__module__ in ("argparse", "pathlib") and cls in (argparse.Namespace, Path)
                   for cls in INERT.values())  # fmt: skip


def test_timms_own_checkpoint(tmp_path: Path) -> None:
    model = network()
    average = ModelEmaV3(model)
    with torch.no_grad():
        next(average.module.parameters()).add_(1)
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        args=argparse.Namespace(model="test_resnet", **vars(options())),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=77.0)
    (path,) = tmp_path.glob("checkpoint-3.pth.tar")
    with pytest.raises(WeightsError, match="2 models: state_dict, state_dict_ema"):
        read_checkpoint(path)
    assert_is(read_checkpoint(path, "state_dict"), model.state_dict())
    assert_is(read_checkpoint(path, "state_dict_ema"), average.module.state_dict())


def test_lightnings_own_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "folder": tmp_path})
            self.model = network()
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=0, logger=False, enable_checkpointing=False, accelerator="cpu", devices=1,
        default_root_dir=tmp_path, enable_progress_bar=False,
    )  # fmt: skip
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert (found.entry, found.prefix) == ("state_dict", "model.")
    assert "criterion.*" in found.ignored
    assert_is(found, module.model.state_dict())


def test_torchvisions_own_checkpoint(tmp_path: Path) -> None:
    """As its references/classification/train.py writes it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = AveragedModel(model)
    content = {
        "model": nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9).state_dict(),
        "epoch": 299,
        "args": options(),
        "model_ema": average.state_dict(),
    }
    (tmp_path / "w.pth").write_bytes(saved(content))
    found = read_checkpoint(tmp_path / "w.pth", "model")
    assert_is(found, model.state_dict())
    assert found.note.startswith("entry model; prefix module. removed; not used: optimizer, ")
    found = read_checkpoint(tmp_path / "w.pth", "model_ema")
    assert_is(found, model.state_dict())
    assert "n_averaged" in found.ignored


class Custom:
    """A class of somebody's own."""


@pytest.mark.parametrize(
    ("content", "found", "advice"),
    [
        (network(), "a whole pickled module", "weights_only=False).state_dict(), NEW)"),
        ({"model": network(), "ema": None}, "a whole pickled module", '["model"].state_dict()'),
        ({"epoch": 1, "state_dict": STATE, "x": Custom()}, "Custom'", '["state_dict"], NEW)'),
    ],
)
def test_the_way_on_fits_the_file(tmp_path: Path, content: object, found: str, advice: str) -> None:
    (tmp_path / "w.pth").write_bytes(saved(content))
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "w.pth")
    first, second = str(caught.value).splitlines()
    assert found in first
    assert first.endswith("; nothing in it was run.")
    assert advice in second


def test_other_programs(tmp_path: Path) -> None:
    example = (torch.zeros(1, 2),)
    torch.export.save(torch.export.export(nn.Linear(2, 3), example), tmp_path / "w.pt2")
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for name, found, advice in (
        ("w.pt2", "a torch.export program", "torch.export.load(FILE).state_dict"),
        ("w.h5", "a Keras model", ".tflite"),
    ):
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(tmp_path / name)
        first, second = str(caught.value).splitlines()
        assert found in first
        assert advice in second


def paddle_optimizer(*kinds: str) -> dict[str, object]:
    """What `paddle.save(optimizer.state_dict(), ...)` pickles."""
    names = ["conv2d_0.w_0", "batch_norm2d_0.b_0"]
    state: dict[str, object] = {
        f"{name}_{kind}_0": np.zeros(3, np.float32) for name in names for kind in kinds
    }
    return {**state, "master_weights": {n: np.ones(3, np.float32) for n in names},
            "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.1}}  # fmt: skip


def test_the_state_of_an_optimizer_is_no_model(tmp_path: Path) -> None:
    momentum = torch.optim.SGD(nn.Linear(2, 3).parameters(), momentum=0.9).state_dict()
    for data in (
        pickle.dumps(paddle_optimizer("velocity"), protocol=2),
        pickle.dumps(paddle_optimizer("moment1", "moment2", "beta1_pow_acc"), protocol=2),
        saved(momentum),
    ):
        (tmp_path / "w.pdopt").write_bytes(data)
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(tmp_path / "w.pdopt")
        first, second = str(caught.value).splitlines()
        assert first.endswith("it contains the state of an optimizer, not a model.")
        assert ".pdparams of the same name" in second
    names = {"conv2d_0.w_0_velocity_0": np.zeros(3), "conv2d_0.w_0": np.zeros(3)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(names, protocol=2))
    assert len(read_checkpoint(tmp_path / "w.pdparams").tensors) == 2


@pytest.mark.parametrize(
    ("name", "content", "found", "advice"),
    [
        ("w.npz", None, "arrays of NumPy", "torch.from_numpy"),
        ("w.pkl", pickle.dumps(STATE), "torch.save did not write", "torch.save(pickle.load("),
        ("w.npy", b"\x93NUMPY\x01\0", "a NumPy array", "by their names"),
        ("w.pth.gz", b"\x1f\x8b\x08\0", "compressed with gzip", "gunzip"),
        ("w.pth", b"\x1c\0\0\0TFL3", "a model of LiteRT", "Name it .tflite"),
        ("w.engine", b"ftrt", "an engine of TensorRT", "python -m eval.score"),
        ("w.pdstates", b"x", "without the weights", "w.pdparams"),
    ],
)
def test_what_else_is_given(
    tmp_path: Path, name: str, content: bytes | None, found: str, advice: str
) -> None:
    if content is None:
        np.savez(tmp_path / name, **{key: tensor.numpy() for key, tensor in STATE.items()})
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / name)
    first, second = str(caught.value).splitlines()
    assert found in first
    assert advice in second


def test_wrappers_inside_of_names_and_counts_of_a_profiler() -> None:
    wrapped = {name.replace("stem.", "stem._fsdp_wrapped_module."): t for name, t in STATE.items()}
    found = choose(under("module.", wrapped))
    assert_is(found)
    assert found.note == "prefix module.*._fsdp_wrapped_module. removed"
    found = choose({**STATE, "stem.total_ops": torch.ones(1), "total_params": torch.ones(1)})
    assert_is(found)
    assert found.note == "not used: stem.total_ops, total_params"
    both = {"a.weight": STATE["fc.weight"], "a._orig_mod.weight": STATE["fc.weight"]}
    assert set(choose({**STATE, **both}).tensors) == {*STATE, *both}, "neither may vanish"


def test_quantized_weights(tmp_path: Path) -> None:
    state = {**STATE, "fc.scale": torch.ones(()), "fc.zero_point": torch.ones(())}
    (tmp_path / "w.pth").write_bytes(saved(state))
    with pytest.raises(WeightsError, match="quantized weights of torch"):
        read_checkpoint(tmp_path / "w.pth")


# --- folders and shards


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(tmp_path)
        return str(caught.value).splitlines()[-1]

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    assert refusal() == f"Did you mean {tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}?"
    (tmp_path / "__0_0.distcp").touch()
    assert "format_utils dcp_to_torch" in refusal()
    (tmp_path / "saved_model.pb").touch()
    assert "python -m tf2onnx.convert --saved-model" in refusal()
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).touch()
    assert refusal() == "Give one of them."


def test_a_name_without_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "latest.pdparams").touch()
    with pytest.raises(WeightsError, match=r"Did you mean latest\.pdparams\?"):
        read_checkpoint(tmp_path / "latest")


def test_shards(tmp_path: Path) -> None:
    save_torch_state_dict(dict(STATE), tmp_path, max_shard_size=20)
    shards = sorted(tmp_path.glob("model-0*.safetensors"))
    assert len(shards) > 1
    found = read_checkpoint(tmp_path)
    assert set(found.tensors) == set(STATE)
    assert all(torch.equal(found.tensors[name], STATE[name]) for name in STATE)
    index = tmp_path / "model.safetensors.index.json"
    assert hashed_files_of(tmp_path) == (*shards, index)
    assert set(read_checkpoint(index).tensors) == set(STATE)
    with pytest.raises(WeightsError, match=f"shard 1 of {len(shards)}.*\nGive the folder"):
        read_checkpoint(shards[0])
    shards[1].unlink()
    with pytest.raises(WeightsError, match=f"{shards[1].name} is missing, one of {len(shards)}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../w.safetensors", "/w.safetensors", "w.safetensors", 3])
def test_an_index_names_shards_beside_it(tmp_path: Path, name: object) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    folder = tmp_path / "f"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    with pytest.raises(WeightsError, match="which is no shard beside it"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["w.pth"], "w.pth"),
        (["w.safetensors", "README.md"], "w.safetensors"),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
    ],
)
def test_folder_with_one(tmp_path: Path, names: list[str], taken: str) -> None:
    for name in names:
        state = STATE if name == taken else OTHER
        data = safetensors.torch.save(state) if "safetensors" in name else saved(state)
        (tmp_path / name).write_bytes(data)
    found = read_checkpoint(tmp_path)
    assert torch.equal(found.tensors["fc.weight"], STATE["fc.weight"])


def test_folder_with_several(tmp_path: Path) -> None:
    for name in ("epoch1.pth", "epoch2.pth"):
        (tmp_path / name).write_bytes(saved(STATE))
    with pytest.raises(WeightsError, match=r"2 checkpoints: epoch1.pth, epoch2.pth.\nGive one"):
        read_checkpoint(tmp_path)
