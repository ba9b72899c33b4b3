"""Reading weights files: every format, every kind of damage, and nothing ever executed."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pplcnet._checkpoint import kind_of, read_checkpoint
from pplcnet._errors import WeightsError

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("PPLCNET_SHARED", ROOT.parent / "shared"))
PROTOCOLS = [2, 3, 4]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Read bytes as a file of the given name."""

    def read(data: bytes, name: str = "weights.pdparams") -> dict[str, torch.Tensor]:
        path = tmp_path / name
        path.write_bytes(data)
        return dict(read_checkpoint(path).tensors)

    return read


@pytest.fixture
def refusal(read: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., str]:
    """The message with which bytes are refused."""

    def refusal(data: bytes, name: str = "weights.pdparams") -> str:
        with pytest.raises(WeightsError) as caught:
            read(data, name)
        message = str(caught.value)
        assert name in message
        assert len(message.splitlines()) == 2
        return message

    return refusal


def assert_holds(tensors: dict[str, torch.Tensor], arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape
        assert str(tensor.dtype) == f"torch.{array.dtype.name}"
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy(), array)
        tensor.zero_()  # writable


# --- .pdparams


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.linspace(-1, 1, 6, dtype="f4").reshape(1, 2, 3),
        np.linspace(-1, 1, 6, dtype=">f8").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        np.arange(12, dtype="f4").reshape(3, 4)[::2, 1::2],
        np.arange(4, dtype="f2"),
        np.arange(4, dtype=">i8"),
        np.arange(4, dtype="u1"),
        np.array([True, False]),
        np.array(0.5, dtype="f4"),
        np.zeros((0, 3), dtype="f4"),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_pdparams_arrays(
    read: Callable[..., Any], protocol: int, array: np.ndarray[Any, Any]
) -> None:
    assert_holds(read(pickle.dumps({"a": array}, protocol)), {"a": array})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pdparams_as_paddle_writes_it(read: Callable[..., Any], protocol: int) -> None:
    arrays = {"conv.weight": np.arange(4, dtype="f4"), "bn._mean": np.ones(2, "f4")}
    names = {"conv.weight": "conv2d_0.w_0", "bn._mean": "batch_norm2d_0.w_1"}
    data = pickle.dumps({**arrays, "StructuredToParameterName@@": names}, protocol)
    assert_holds(read(data), arrays)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state},
    lambda state: {"model": state, "epoch": 3},
    lambda state: {**state, "global_step": 7},
])  # fmt: skip
def test_pdparams_with_more_than_the_weights(
    read: Callable[..., Any], protocol: int, wrap: Callable[[Any], Any]
) -> None:
    arrays = {"fc.weight": np.linspace(-1, 1, 6, dtype="f4").reshape(2, 3)}
    names = {"StructuredToParameterName@@": {"fc.weight": "linear_0.w_0"}}
    assert_holds(read(pickle.dumps(wrap({**arrays, **names}), protocol)), arrays)


def test_paddles_tensors_without_names_are_named_as_such(refusal: Callable[..., str]) -> None:
    # paddle.save(paddle.to_tensor([1.5, -2.0]), path, use_binary_format=True), of Paddle 3.3.1
    data = bytes(16) + b"\4\0\0\0" + b"\x08\x05\x10\x02" + np.float32([1.5, -2]).tobytes()
    assert "tensors without names, as .pdiparams and use_binary_format have them" in refusal(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pdparams_of_numpy_1(read: Callable[..., Any], protocol: int) -> None:
    array = np.arange(4, dtype="f4")
    data = pickle.dumps({"a": array, "b": np.float32(2)}, protocol)
    assert b"numpy._core.multiarray" in data
    data = data.replace(b"\x8c\x16numpy._core", b"\x8c\x15numpy.core")  # protocol 4
    data = data.replace(b"numpy._core", b"numpy.core")
    data = pickletools.optimize(data)  # new frames
    assert_holds(read(data), {"a": array, "b": np.array(2, dtype="f4")})


def test_pdparams_of_python_2(read: Callable[..., Any]) -> None:
    array = np.array([0.1, -2.5], dtype="f4")
    data = (
        b"\x80\x02}q\x01U\x01wq\x02"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + array.tobytes()
        + b"tbs."
    )
    oracle = pickle.loads(data.replace(b"numpy.core", b"numpy._core"), encoding="latin1")
    np.testing.assert_array_equal(oracle["w"], array)
    assert_holds(read(data), {"w": array})


def test_pdparams_of_named_tensors(read: Callable[..., Any]) -> None:
    """Paddle 2.1 and later write (name, array) where the dict holds more than tensors."""

    class Tensor:
        def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
            self.args = (name, array)

        def __reduce__(self) -> tuple[type, tuple[Any]]:
            return tuple, (self.args,)

    array = np.arange(3, dtype="f4")
    for protocol in PROTOCOLS:
        data = pickle.dumps({"w": Tensor("conv2d_0.w_0", array)}, protocol)
        assert_holds(read(data), {"w": array})


def split(array: np.ndarray[Any, Any], pieces: int = 2) -> dict[str, Any]:
    parts = np.array_split(array.flatten(), pieces)
    slices = {f"w@@.{i}": part for i, part in enumerate(parts)}
    table = {"w": {"OriginShape": array.shape, "slices": list(slices)}}
    return {"a": np.ones(1, "f4"), **slices, "UnpackBigParamInfor@@": table}


@pytest.mark.parametrize("pieces", [1, 2, 3, 11])
def test_pdparams_with_a_split_array(read: Callable[..., Any], pieces: int) -> None:
    array = np.arange(24, dtype="f4").reshape(2, 3, 4)
    data = pickle.dumps(split(array, pieces), 2)
    assert_holds(read(data), {"a": np.ones(1, "f4"), "w": array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("w@@.1"), "w@@.1"),
        (lambda c: c["UnpackBigParamInfor@@"]["w"].update(OriginShape=(5, 5)), "shape"),
        (lambda c: c["UnpackBigParamInfor@@"]["w"].update(OriginShape=(-1,)), "shape"),
        (lambda c: c["UnpackBigParamInfor@@"]["w"].pop("slices"), "pieces of 'w'"),
        (lambda c: c["UnpackBigParamInfor@@"]["w"].update(slices=[]), "pieces of 'w'"),
        (lambda c: c["UnpackBigParamInfor@@"]["w"]["slices"].append("w@@.1"), "w@@.1"),
        (lambda c: c.update(w=np.ones(1, "f4")), "pieces of 'w'"),
        (lambda c: c.update({"w@@.1": np.ones(12, "f8")}), "pieces of 'w'"),
        (lambda c: c.update({"UnpackBigParamInfor@@": [1]}), "table of pieces"),
    ],
)
def test_pdparams_with_a_wrong_split(
    refusal: Callable[..., str], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = split(np.arange(24, dtype="f4"))
    change(content)
    assert message in refusal(pickle.dumps(content, 2))


def test_oracle_checkpoint() -> None:
    path = SHARED / "oracle" / "base.pdparams"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    tensors = read_checkpoint(path).tensors
    assert len(tensors) == 278
    assert tensors["fc.weight"].shape == (1280, 1000)
    with path.open("rb") as file:
        oracle = pickle.load(file)
    del oracle["StructuredToParameterName@@"]
    assert_holds(tensors, oracle)


# --- hostile pickles


class Call:
    """Pickled so that unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose unpickling creates `marker`, and the name that the message must give."""
    code = f"open({str(marker)!r}, 'w').close()"
    weights = np.ones(2, "f4")
    system = "posix.system" if os.name == "posix" else "nt.system"
    return {
        "os.system": (Call(os.system, f"touch {marker}"), system),
        "eval": (Call(eval, code), "eval"),
        "exec": (Call(exec, code), "exec"),
        "open": (Call(open, str(marker), "w"), "open"),
        "path": (Call(Path.touch, marker), "getattr"),
        "in a dict": ({"w": weights, "v": Call(eval, code)}, "eval"),
        "in a tensor": ({"w": Call(tuple, ("w", Call(eval, code)))}, "eval"),
        "in the name table": ({"StructuredToParameterName@@": Call(eval, code)}, "eval"),
        "before the tensors": ([Call(eval, code), {"w": weights}], "eval"),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("case", list(hostile(Path("marker"))))
def test_hostile_pickle_is_not_run(
    refusal: Callable[..., str], tmp_path: Path, case: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    content, name = hostile(marker)[case]
    data = pickle.dumps(content, protocol)
    result = pickle.loads(data)  # it is a real one
    if hasattr(result, "close"):
        result.close()
    marker.unlink()

    message = refusal(data)
    assert not marker.exists()
    if 2 <= protocol <= 4:
        assert "refused: loading it would use" in message
        assert name in message or (case == "path" and "pathlib" in message)
        assert "nothing in it was run" in message


def pushed(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "'os.system'"),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", "'copyreg._reconstructor'"),
        (b"\x80\x02ccopy_reg\n_reconstructor\n.", "'copy_reg._reconstructor'"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar.__globals__\n.", "scalar.__globals__"),
        (b"\x80\x02cnumpy.core.multiarray\nfromfile\n.", "multiarray.fromfile"),
        (b"\x80\x02cnumpy.core\nmultiarray._reconstruct\n.", "numpy.core.multiarray"),
        (b"\x80\x02cnumpy\nmemmap\n.", "'numpy.memmap'"),
        (b"\x80\x02c__builtin__\neval\n.", "'__builtin__.eval'"),
        (b"\x80\x02c_codecs\ndecode\n.", "'_codecs.decode'"),
        (b"\x80\x02cos\x1b[2J\nsystem\n.", r"'os\x1b[2J.system'"),
        # names put together at run time, or taken from elsewhere
        (b"\x80\x04" + pushed("os") + pushed("system") + b"\x93.", "'os.system'"),
        (b"\x80\x04" + pushed("system") + b"\x940" + pushed("os") + b"h\x00\x93.", "opcode POP"),
        (b"\x80\x04" + pushed("system") + b"\x94" + pushed("os") + b"h\x00\x93.", "'os.system'"),
        (b"\x80\x04K\x01K\x02\x93.", "without a name"),
        (b"\x80\x02" + pushed("id") + b"Q.", "opcode BINPERSID"),
        (b"\x80\x02Pid\n.", "opcode PERSID"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "opcode EXT4"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x04cnumpy\nndarray\n)}\x92.", "opcode NEWOBJ_EX"),
        (b"\x80\x02(cnumpy\nndarray\no.", "opcode OBJ"),
        (b"\x80\x02(inumpy\nndarray\n.", "opcode INST"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "protocol 5"),
        # the allowed ones, with what they are not meant for
        (b"\x80\x02c__builtin__\ntuple\n}b.", "state"),
        (b"\x80\x02c_codecs\nencode\n" + pushed("w") + pushed("zip") + b"\x86R.", "encode with"),
        (b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.", "bytes with"),
        (b"\x80\x02c__builtin__\ntuple\n" + pushed("w") + b"\x85R.", "tuple with"),
        (b"\x80\x02" + pushed("w") + b")R.", "cannot be called"),
        (b"\x80\x02}}b.", "state"),
        (b"\x80\x02}K\x01Ns.", "keys that are not strings"),
        (b"\x80\x02}()K\x01u.", "keys that are not strings"),
        (b"\x80\x02}(" + 2 * (pushed("w") + b"N") + b"u.", "'w' appears twice"),
    ],
)
def test_crafted_pickle(refusal: Callable[..., str], data: bytes, message: str) -> None:
    found = refusal(data)
    assert message in found
    assert found.isascii()
    assert "\x1b" not in found


@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_shape_and_bytes_must_agree(refusal: Callable[..., str], length: int) -> None:
    data = pickle.dumps({"w": np.ones(3, "f4")}, 2)
    assert data.count(b"K\x03\x85") == 1
    message = refusal(data.replace(b"K\x03\x85", b"K" + bytes([length]) + b"\x85"))
    assert f"12 bytes for an array of shape ({length},)" in message


@pytest.mark.parametrize("dtype", ["O", "S3", "U3", "V8", "c8", "M8[s]", [("a", "f4")]])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_numbers(refusal: Callable[..., str], protocol: int, dtype: Any) -> None:
    message = refusal(pickle.dumps({"w": np.zeros(2, dtype)}, protocol))
    assert "which are not real numbers" in message


def entry(name: str, value: bytes) -> bytes:
    return pushed(name) + value + b"s"


def many_names(table: bytes = b"") -> bytes:
    """One array of 100 kB by 2,000 names, and what else is to follow in the dict."""
    array = pickle.dumps(np.zeros(100_000, "u1"), 4)[2:-1] + b"r" + struct.pack("<I", 9999)
    again = b"j" + struct.pack("<I", 9999)
    names = b"".join(entry(f"k{i}", again) for i in range(1, 2_000))
    return b"\x80\x04}" + entry("k0", array) + names + table + b"."


def split_table(slices: bytes) -> bytes:
    table = b"}" + entry("OriginShape", b"K\x01\x85") + entry("slices", slices)
    return entry("UnpackBigParamInfor@@", b"}" + entry("w", table))


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that ask for a great deal of memory or time."""
    nest = b")" + b"q\x00h\x00\x86" * 60  # a tuple of two tuples of two ...: 2**60 leaves
    slices = b"](" + b"".join(pushed(f"k{i}") for i in range(2_000)) + b"e"
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00"
    encode = b"c_codecs\nencode\nh\x00" + pushed("latin1") + b"\x86R"
    return {
        "memo": (b"\x80\x02}r\xff\xff\xff\xff.", "no tensors"),
        "frame": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "no tensors"),
        "bytes": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.", "expected 92233"),
        "text": (b"\x80\x02X\xff\xff\xff\xffa.", "expected 4294967295 bytes"),
        "long": (b"\x80\x02\x8b\xff\xff\xff\x7fa.", "not enough data"),
        "steps": (b"\x80\x02" + b"N" * 300_000 + b".", "over 200,000 opcodes"),
        "encoding": (b"\x80\x02" + text + encode * 9_000 + b".", "larger than the file"),
        "pieces": (many_names(split_table(slices)), "pieces of 'w' that do not belong"),
        "key": (b"\x80\x02}" + nest + b"Ns.", "keys that are not strings"),
        "dtype": (b"\x80\x02cnumpy\ndtype\n" + nest + b"\x89\x88\x87R.", "dtype with unknown"),
        "piece": (b"\x80\x02}" + split_table(b"]" + nest + b"a") + b".", "not a string"),
        "depth": (b"\x80\x02)" + b"\x85" * 60_000 + b".", "a tuple, not a state dict"),
    }


@pytest.mark.parametrize("case", list(bombs()))
def test_bomb(refusal: Callable[..., str], case: str) -> None:
    data, message = bombs()[case]
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        assert calls < 5_000_000, "it takes for ever"

    before = sys.getprofile()
    tracemalloc.start()
    sys.setprofile(count)
    try:
        assert message in refusal(data)
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        sys.setprofile(before)
        tracemalloc.stop()


def test_names_of_one_array_share_its_memory(read: Callable[..., Any]) -> None:
    tensors = read(many_names())
    assert len(tensors) == 2_000
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 1


# --- other content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a list, not a state dict"),
        (np.ones(2, "f4"), "a Tensor, not a state dict"),
        ({}, "no tensors"),
        ({"StructuredToParameterName@@": {}}, "no tensors"),
        ({"w": "text"}, "no tensors"),
        ({"w": ("name", "text")}, "no tensors"),
        ({"model": {"w": "text"}, "opt": {}, "epoch": 3}, "no tensors"),
        ({"w\x1b[2J": np.ones(2, "f4")}, r"bad name: 'w\x1b[2J'"),
        ({"w\ud800": np.ones(2, "f4")}, r"bad name: 'w\ud800'"),
    ],
)
def test_pickle_of_something_else(
    refusal: Callable[..., str], content: object, message: str
) -> None:
    assert message in refusal(pickle.dumps(content, 4))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.pdparams", b"", "empty file"),
        ("w.safetensors", b"", "empty file"),
        ("w.pdparams", b"<!DOCTYPE html><html>...", "a web page, not weights"),
        ("w.pth", b"\xef\xbb\xbf\n  <?xml version='1.0'?><Error/>", "a web page, not weights"),
        ("w.pdparams", b"version https://git-lfs.github.com/spec/v1\noid ...", "git lfs pull"),
        ("w.pdparams", b'{"error": "not found"}', "not a .pdparams file: it begins with"),
        ("w.onnx", b"\x08\x07\x12\x07pytorch", "not a weights file: it begins with"),
        ("w.pth", b"\x1b[2J", r"begins with b'\x1b[2J'"),
        ("w.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{\xff\xff", "damaged safetensors"),
    ],
)
def test_not_weights(refusal: Callable[..., str], name: str, data: bytes, message: str) -> None:
    assert message in refusal(data, name)


def test_safetensors_whose_length_looks_like_a_web_page() -> None:
    header = b"{" + b" " * (0x3C20 - 1)
    assert kind_of(struct.pack("<Q", 0x3C20) + header) == "safetensors file"
    assert kind_of(struct.pack("<Q", 0x0480) + header) == "safetensors file"


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "PPLCNetV2_base_pretrained.pdparams").write_bytes(b"")
    with pytest.raises(WeightsError, match="no such file") as caught:
        read_checkpoint(tmp_path / "PPLCNetV2_base_pretraind.pdparams")
    assert "Did you mean PPLCNetV2_base_pretrained.pdparams?" in str(caught.value)
    with pytest.raises(WeightsError, match="--weights auto"):
        read_checkpoint(tmp_path / "nowhere" / "w.pth")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a folder without a checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize("format_", list(load_script("fuzz_weights").samples()))
def test_truncated_at_every_byte(read: Callable[..., Any], format_: str) -> None:
    data = load_script("fuzz_weights").samples()[format_]
    assert read(data)
    for length in {*range(0, len(data), 7), *range(len(data) - 40, len(data))}:
        with pytest.raises(WeightsError) as caught:
            read(data[:length])
        assert len(str(caught.value).splitlines()) == 2


def test_truncated_message(refusal: Callable[..., str]) -> None:
    data = pickle.dumps({"w": np.ones(100, "f4")}, 4)
    message = refusal(data[:300])
    assert "truncated or damaged pickle" in message
    assert "300 bytes, sha256 " in message


@pytest.mark.parametrize("format_", ["pdparams protocol 2", "pdparams protocol 4"])
def test_bytes_after_the_end(refusal: Callable[..., str], format_: str) -> None:
    data = load_script("fuzz_weights").samples()[format_]
    assert "5 bytes after the end" in refusal(data + b"extra")


@pytest.mark.parametrize("format_", list(load_script("fuzz_weights").samples()))
def test_damaged_at_random(tmp_path: Path, format_: str) -> None:
    script = load_script("fuzz_weights")
    counts = script.fuzz(script.samples()[format_], 250, tmp_path)
    assert counts["refused"] > 150
    assert counts["read"] > 0


# --- .safetensors and .pth

TENSORS = {
    "conv.weight": torch.linspace(-1, 1, 12).reshape(2, 6),
    "fc.weight": torch.arange(6, dtype=torch.float16),
    "steps": torch.tensor(3),
    "none": torch.zeros(0, 4),
}


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def assert_equal(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.is_contiguous()
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=0)
        tensor.zero_()


def clones() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in TENSORS.items()}


def test_safetensors(read: Callable[..., Any]) -> None:
    tensors = read(safetensors.torch.save(TENSORS), "w.safetensors")
    assert_equal({name: tensors[name] for name in TENSORS}, clones())


def test_safetensors_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    tensors = read_checkpoint(path).tensors
    path.write_bytes(b"")
    assert torch.equal(tensors["conv.weight"], TENSORS["conv.weight"])


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "state_dict_ema", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pth(read: Callable[..., Any], options: Any, wrapper: str | None, prefix: str) -> None:
    state: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in TENSORS.items()}
    content = {wrapper: state, "epoch": 3, "arch": "pplcnetv2"} if wrapper else state
    assert_equal(read(saved(content, **options), "w.pth"), clones())


@pytest.mark.parametrize("new", [True, False])
def test_pth_of_another_protocol(refusal: Callable[..., str], new: bool) -> None:
    """torch.load itself cannot read it with weights_only; the message is short and says so."""
    data = saved(TENSORS, pickle_protocol=4, _use_new_zipfile_serialization=new)
    assert "torch.load rejects its content (Unsupported operand 149)" in refusal(data, "w.pth")


def test_pth_of_parameters_and_views(read: Callable[..., Any]) -> None:
    state = {
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    assert_equal(read(saved(state), "w.pth"), {k: v.clone() for k, v in state.items()})


@pytest.mark.parametrize("name", ["w.pdparams", "w.pth", "w.safetensors", "w"])
def test_content_decides_not_the_name(read: Callable[..., Any], name: str) -> None:
    array = np.arange(3, dtype="f4")
    assert_holds(read(pickle.dumps({"a": array}, 4), name), {"a": array})
    assert_equal(read(saved(TENSORS), name), clones())
    assert set(read(safetensors.torch.save(TENSORS), name)) == set(TENSORS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "state_dict_ema": {}}, "no tensors"),
        ({0: torch.ones(1)}, "no tensors"),
        ([torch.ones(1)], "a list, not a state dict"),
        (torch.ones(1), "a Tensor, not a state dict"),
        ({}, "no tensors"),
        ({"a": torch.ones(2).to_sparse()}, "'a' is not a plain tensor"),
        ({"a": torch.empty(2, device="meta")}, "'a' is not a plain tensor"),
        ({"a": torch.ones(1).expand(10**12)}, "larger than the file"),
        ({"a": np.float64(1.0)}, "no tensors"),
    ],
)
def test_pth_of_something_else(refusal: Callable[..., str], content: Any, message: str) -> None:
    assert message in refusal(saved(content), "w.pth")


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("case", ["os.system", "eval", "exec"])
def test_hostile_pth_is_not_run(
    refusal: Callable[..., str], tmp_path: Path, case: str, new: bool
) -> None:
    marker = tmp_path / "marker"
    content, name = hostile(marker)[case]
    data = saved({"w": torch.ones(1), "v": content}, _use_new_zipfile_serialization=new)
    torch.load(io.BytesIO(data), weights_only=False)  # it is a real one
    marker.unlink()
    message = refusal(data, "w.pth")
    assert name in message
    assert "nothing in it was run" in message
    assert not marker.exists()


def test_pth_with_a_flipped_bit(refusal: Callable[..., str]) -> None:
    """torch.load itself does not notice."""
    tensor = torch.ones(1000)
    data = bytearray(saved({"a": tensor}))
    data[data.index(tensor.numpy().tobytes()) + 2000] ^= 1
    assert not torch.equal(torch.load(io.BytesIO(data), weights_only=True)["a"], tensor)
    assert "the checksum of 'archive/data/0' is wrong" in refusal(bytes(data), "w.pth")


def rezipped(data: bytes, compression: int, rename: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for entry in old.namelist():
            new.writestr(rename.get(entry, entry), old.read(entry))
    return file.getvalue()


def test_zip_files_that_torch_has_not_written(refusal: Callable[..., str]) -> None:
    data = saved({"a": torch.zeros(10_000)})
    compressed = rezipped(data, zipfile.ZIP_DEFLATED, {})
    assert "torch.save does not compress" in refusal(compressed, "w.pth")
    other = rezipped(data, zipfile.ZIP_STORED, {"archive/data.pkl": "archive/other.pkl"})
    assert "not one written by torch.save" in refusal(other, "w.pth")
    program = rezipped(data, zipfile.ZIP_STORED, {"archive/version": "archive/constants.pkl"})
    assert "a TorchScript program" in refusal(program, "w.pth")


# --- Complex numbers


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("kind", ["pdparams", "safetensors", "pth"])
def test_complex_tensors_are_refused(refusal: Callable[..., str], kind: str, dtype: str) -> None:
    """Their imaginary part would be lost on the way to float32."""
    real, complex_ = np.ones(3, np.float32), np.full(3, 1 + 2j, dtype)
    arrays = {"a.weight": real, "b.weight": complex_}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if kind == "pdparams":
        data = pickle.dumps(arrays, protocol=4)
    elif kind == "pth":
        file = io.BytesIO()
        torch.save(tensors, file)
        data = file.getvalue()
    else:
        try:
            data = safetensors.torch.save(tensors)
        except (KeyError, safetensors.SafetensorError):  # it has no complex128
            pytest.skip(f"safetensors cannot hold {dtype}")
    message = refusal(data, f"weights.{kind}")
    if kind == "pdparams":  # refused before there is a tensor
        assert "it contains values of type 'c" in message
    else:
        assert f"its tensor 'b.weight' is {dtype}; weights must be real numbers" in message
