"""torch's own ways out of Python, and timm's calls for them: the same answers every time."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable

import pytest
import timm
import torch
from conftest import randomize_bn
from timm.layers import set_scriptable
from torch import Tensor, nn
from torch.jit import _recursive

import pplcnet

VARIANTS = ("small", *(pytest.param(v, marks=pytest.mark.slow) for v in ("base", "large")))
FORMS = ["unfused", "reparameterized"]
TIMM_MODELS = ["pplcnetv2_small", *(
    pytest.param(f"pplcnetv2_{size}", marks=pytest.mark.slow) for size in ("base", "large")
)]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated, and still in use


def images(batch: int = 2) -> Tensor:
    """Small ones: the last stage sees 2x2 positions."""
    return torch.randn(batch, 3, 64, 64)


def network(variant: str, form: str) -> nn.Module:
    model = pplcnet.create_model(variant, num_classes=50).eval()
    randomize_bn(model)
    return model if form == "unfused" else pplcnet.reparameterize(model)


def same_answers(
    found: Callable[[Tensor], Tensor],
    model: nn.Module,
    *,
    equal: bool = True,
    batch: int = 2,
    times: int = 3,  # a script is optimized after it has seen its input
) -> None:
    with torch.inference_mode():
        for _ in range(times):
            x = images(batch)
            expected = model(x)
            assert expected.std() > 1e-3  # not all alike, whatever the input
            if equal:
                assert torch.equal(found(x), expected)
            else:  # float32 is off by 2e-5 here, compared with float64
                assert (found(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def reloaded(script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.fixture(autouse=True)
def _no_builtin_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript knows its builtins by `id`, also those of operators that are gone.

    A list of a convolution that got such an id was taken for a builtin, once in many runs.
    """
    find = _recursive._find_builtin
    monkeypatch.setattr(_recursive, "_find_builtin", lambda x: find(x) if callable(x) else None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_script(variant: str, form: str) -> None:
    model = network(variant, form)
    same_answers(reloaded(torch.jit.script(model)), model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_trace(variant: str, form: str) -> None:
    model = network(variant, form)
    traced = torch.jit.trace(model, images(1))
    same_answers(reloaded(traced), model, batch=3, times=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_export(variant: str, form: str) -> None:
    model = network(variant, form)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images(),), dynamic_shapes=(batch,))
    same_answers(program.module(), model, batch=3, times=1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compile(variant: str, form: str) -> None:
    model = network(variant, form)
    same_answers(torch.compile(model), model, equal=False)


@pytest.mark.slow  # test_backends compiles the deploy form
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compile_the_branches() -> None:
    """The part of the network that is written with other tools in mind, compiled in seconds."""
    branches = pplcnet.create_model("small").stages[2][1].dw_conv.eval()
    randomize_bn(branches)
    x = torch.randn(2, 384, 6, 6)
    with torch.inference_mode():
        compiled = torch.compile(branches, fullgraph=True)
        torch.testing.assert_close(compiled(x), branches(x), rtol=1e-4, atol=1e-5)


def test_a_scripted_model_can_be_trained() -> None:
    model = pplcnet.create_model("small", num_classes=5)
    script = torch.jit.script(model)
    script(images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in script.parameters())


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_script(name: str) -> None:
    with set_scriptable(True):
        model = timm.create_model(name, num_classes=50).eval()
    randomize_bn(model)
    same_answers(torch.jit.script(model), model)
    deploy = timm.models.reparameterize_model(model)
    same_answers(torch.jit.script(deploy), deploy)


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_script_of_features(name: str) -> None:
    with set_scriptable(True):
        model = timm.create_model(name, features_only=True).eval()
    script = torch.jit.script(model)
    x = images()
    with torch.inference_mode():
        found, expected = script(x), model(x)
    assert [feature.shape[1] for feature in found] == model.feature_info.channels()
    assert all(map(torch.equal, found, expected))


@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")  # dropout, in training
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_script_of_a_graph_of_features(name: str) -> None:
    """timm's second way to get features: by tracing with torch.fx."""
    with set_scriptable(True):
        model = timm.create_model(name, features_only=True, feature_cls="fx")
    script = torch.jit.script(model.eval())
    x = images()
    with torch.inference_mode():
        assert all(map(torch.equal, script(x), model(x)))
