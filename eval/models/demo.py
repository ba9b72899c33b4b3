"""The embedded default: a small 1000-class val folder and weights whose counts are known.

The images are drawn in integer arithmetic from a frozen generator and carry the oddities of
ImageNet. The weights are a random backbone with calibrated BN statistics and a head that
`scripts/make_demo.py` fitted once, with timm's model and torchvision's transforms and nothing
of ours, so that 437 of the 1000 answers are right. A pipeline that differs from theirs in
channel order, crop, resize, BN, a branch or the dropout factor gets other counts.

Only numpy and Pillow are needed here. The figures say nothing about ImageNet.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from eval.config import Reference, Tolerance, VariantConfig
from eval.errors import DataError
from eval.measure.progress import Event, Observer
from eval.models import Subject
from eval.models.variants import load_network
from eval.request import Request

if TYPE_CHECKING:
    from eval.images.preprocess import Preprocess

__all__ = [
    "DEMO_IMAGES",
    "KNOWN_ANSWER",
    "WEIGHTS_NAME",
    "DemoSource",
    "demo_variant",
    "make_demo",
    "open_source",
]

CAUTION = "DEMO: synthetic images and weights; no figure here is an ImageNet accuracy"

DEMO_IMAGES = 1000

# Preprocessing -> (top-1, top-5) correct of 1000; printed by scripts/make_demo.py.
KNOWN_ANSWER: dict[str, tuple[int, int]] = {
    "torchvision": (437, 612),
    "paddle": (383, 571),
    "squash": (291, 498),
}

WEIGHTS_NAME = "PPLCNetV2_base_demo.pdparams"
_MANIFEST = "demo.json"
_ORIENTATION = 0x0112  # the EXIF tag
_IMAGE_SEED = 20240
_WEIGHT_SEED = 1

# Of every 40 images, these are odd; the others are plain baseline RGB.
_KINDS = {
    3: "grey",
    11: "cmyk",
    17: "rotated",
    23: "tiny",
    29: "progressive",
    31: "panorama",
    37: "rotated",
}
_HUGE = {137: (2800, 2100), 500: (2100, 2800), 862: (2600, 1900)}
_PNG = 421  # ImageNet has one, too: n02105855_2933.JPEG

# Base: output channels, depthwise kernel, split pointwise, branches, SE, blocks.
_STAGES = (
    (128, 3, False, False, False, 2),
    (256, 3, False, False, False, 2),
    (512, 5, True, True, True, 6),
    (1024, 5, False, True, False, 2),
)


def kind(index: int) -> str:
    """What is odd about image `index`: a value of the table above, `huge`, `png` or `plain`."""
    if index in _HUGE:
        return "huge"
    return "png" if index == _PNG else _KINDS.get(index % 40, "plain")


def demo_image(index: int) -> bytes:
    """Return the file of image `index` (0..999), the same pixels on every machine."""
    random = np.random.RandomState(_IMAGE_SEED + index)
    odd = kind(index)
    if odd == "huge":
        width, height = _HUGE[index]
        image = Image.fromarray(_draw(random, width // 4, height // 4).repeat(4, 0).repeat(4, 1))
    else:
        image = Image.fromarray(_draw(random, *_size(random, odd)))
    if odd == "grey":
        image = image.convert("L")
    elif odd == "cmyk":
        # Not convert(): its K is always 0, and a reader that ignores K would pass.
        ink = 255 - np.asarray(image)
        black = ink.min(2, keepdims=True) // 2
        image = Image.frombytes("CMYK", image.size, np.dstack([ink - black, black]).tobytes())
    file = io.BytesIO()
    if odd == "png":
        image.save(file, "PNG")
        return file.getvalue()
    exif = Image.Exif()
    if odd == "rotated":
        exif[_ORIENTATION] = 2 + index // 20 % 7
    elif index % 9 == 0:
        exif[_ORIENTATION] = 1  # most tags in ImageNet say "upright"
    image.save(
        file,
        "JPEG",
        quality=40 + index % 4 * 5,
        subsampling="4:4:4" if index % 5 == 0 else "4:2:0",
        progressive=odd == "progressive",
        exif=exif,
    )
    return file.getvalue()


def _integer(random: np.random.RandomState, low: int, high: int) -> int:
    """Draw from low..high, both included, from the same stream on every platform."""
    return int(random.randint(low, high + 1, dtype=np.int64))


def _size(random: np.random.RandomState, odd: str) -> tuple[int, int]:
    """Draw (width, height): a third portrait, sides that round and crop in every way."""
    short = _integer(random, 33, 80) if odd == "tiny" else _integer(random, 230, 400)
    percent = _integer(random, 200, 330) if odd == "panorama" else _integer(random, 100, 160)
    long = short * percent // 100
    return (short, long) if _integer(random, 0, 2) == 0 else (long, short)


def _draw(random: np.random.RandomState, width: int, height: int) -> NDArray[np.uint8]:
    """Draw an (height, width, 3) image: colour cells of five sizes under a few shapes.

    Cells and stripes give every image its own texture, with edges at all phases: that is what
    makes a shifted crop or another resize visible.
    """
    y = np.arange(height, dtype=np.int32)[:, None]
    x = np.arange(width, dtype=np.int32)[None, :]
    image = np.zeros((height, width, 3), np.int16)
    image += random.randint(40, 216, 3, dtype=np.int16)
    for cell, most in (96, 70), (40, 70), (17, 70), (7, 40), (3, 20):
        strength = _integer(random, 0, most)
        shape = (height // cell + 2, width // cell + 2, 3)
        grid = random.randint(-strength, strength + 1, shape, dtype=np.int16)
        top, left = _integer(random, 0, cell - 1), _integer(random, 0, cell - 1)
        rows = grid.repeat(cell, 0)[top : top + height]
        image += rows.repeat(cell, 1)[:, left : left + width]
    for _ in range(_integer(random, 3, 8)):
        shape_kind = _integer(random, 0, 3)
        centre_x, centre_y = _integer(random, 0, width), _integer(random, 0, height)
        radius, period = _integer(random, 12, 110), _integer(random, 4, 40)
        slope_x, slope_y = _integer(random, -3, 3), _integer(random, -3, 3)
        if shape_kind == 0:
            mask = (abs(x - centre_x) < radius) & (abs(y - centre_y) < radius * 2 // 3)
        elif shape_kind == 1:
            mask = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        elif shape_kind == 2:
            mask = (slope_x * x + slope_y * y) // period % 2 == 0
        else:
            mask = ((x // period + y // period) % 2 == 0) & (abs(x - centre_x) < radius)
        image += mask[:, :, None] * random.randint(-120, 121, 3, dtype=np.int16)
    return image.clip(0, 255).astype(np.uint8)


def backbone_weights(statistics: NDArray[np.float16] | None) -> dict[str, NDArray[np.float32]]:
    """Draw all weights but `fc`; `statistics` (2, channels) are BN means and variances."""
    return _Backbone(statistics).weights


class _Backbone:
    """Draws PPLCNetV2_base without its `fc`, under Paddle's names and in Paddle's order."""

    def __init__(self, statistics: NDArray[np.float16] | None) -> None:
        self.weights: dict[str, NDArray[np.float32]] = {}
        self._random = np.random.RandomState(_WEIGHT_SEED)
        self._statistics = statistics
        self._channels = 0
        self._conv_bn("stem.0", 32, 3, 3)
        self._conv_bn("stem.1.dw_conv", 32, 1, 3)
        self._conv_bn("stem.1.pw_conv", 64, 32, 1)
        width = 64
        for stage, (out, kernel, split, branches, squeeze, depth) in enumerate(_STAGES):
            for number in range(depth):
                block = f"stages.{stage}.{number}"
                if branches:
                    # Like the official code: no 1x1 branch where the stride is 2.
                    for i, size in enumerate((5, 3) if number == 0 else (5, 3, 1)):
                        self._conv_bn(f"{block}.dw_conv_list.{i}", width, 1, size)
                    self._placeholder(f"{block}.dw_conv", width, kernel)
                else:
                    self._conv_bn(f"{block}.dw_conv", width, 1, kernel)
                if squeeze:
                    self._conv_bias(f"{block}.se.conv1", width // 4, width)
                    self._conv_bias(f"{block}.se.conv2", width, width // 4)
                if split:
                    self._conv_bn(f"{block}.pw_conv_1", out // 2, width, 1)
                    self._conv_bn(f"{block}.pw_conv_2", out, out // 2, 1)
                else:
                    self._conv_bn(f"{block}.pw_conv", out, width, 1)
                width = out
        self._conv("last_conv", 1280, width, 1)

    def _uniform(self, low: int, high: int, *shape: int) -> NDArray[np.float32]:
        """Draw (low..high) / 64: exact in float32."""
        drawn = self._random.randint(low, high + 1, shape, dtype=np.int16)
        return drawn.astype(np.float32) / np.float32(64)

    def _conv(self, name: str, out: int, width: int, kernel: int) -> None:
        # Depthwise kernels lean to positive, so that the features are not mere noise.
        lean = 18 if width == 1 else 0
        fan_in = np.float32(width * kernel * kernel)
        weight = self._uniform(lean - 110, lean + 110, out, width, kernel, kernel)
        self.weights[f"{name}.weight"] = weight / np.sqrt(fan_in)

    def _conv_bias(self, name: str, out: int, width: int) -> None:
        self._conv(name, out, width, 1)
        self.weights[f"{name}.weight"] *= 2  # spread the gates
        self.weights[f"{name}.bias"] = self._uniform(-128, 128, out)

    def _conv_bn(self, name: str, out: int, width: int, kernel: int) -> None:
        self._conv(f"{name}.conv", out, width, kernel)
        # Small outputs in some channels: their variance is near epsilon, which then matters.
        halvings = self._random.randint(0, 6, (out, 1, 1, 1), dtype=np.int16)
        self.weights[f"{name}.conv.weight"] *= np.ldexp(np.float32(1), -halvings)
        self.weights[f"{name}.bn.weight"] = self._uniform(16, 64, out)
        self.weights[f"{name}.bn.bias"] = self._uniform(-16, 64, out)
        mean, variance = np.zeros(out, np.float16), np.ones(out, np.float16)
        if self._statistics is not None:
            mean, variance = self._statistics[:, self._channels : self._channels + out]
        self._channels += out
        self.weights[f"{name}.bn._mean"] = mean.astype(np.float32)
        self.weights[f"{name}.bn._variance"] = variance.astype(np.float32)

    def _placeholder(self, name: str, width: int, kernel: int) -> None:
        """What official files hold beside the branches, unused: noise, to catch its use."""
        self.weights[f"{name}.weight"] = self._uniform(-64, 64, width, 1, kernel, kernel)
        self.weights[f"{name}.bias"] = self._uniform(-64, 64, width)


@cache
def fitted() -> dict[str, NDArray[np.generic]]:
    """Read what scripts/make_demo.py fitted.

    `fc` int8 (1280, 1000) with `scale` and `bias` float32 (1000,); `statistics` float16
    (2, channels): BN means and variances in the order of the weights; `pixels` uint8 (1000, 8):
    digests of the images; `outcome` uint8 (preprocessings, 1000): 0 for an image that is right,
    1 in the top five, 2 wrong.
    """
    with (resources.files("eval") / "resources" / "demo.npz").open("rb") as file:
        return dict(np.load(file))


def demo_weights() -> dict[str, NDArray[np.float32]]:
    """Return PPLCNetV2_base under Paddle's names and in its layouts, bit for bit the same."""
    known = fitted()
    weights = backbone_weights(known["statistics"].astype(np.float16))
    weights["fc.weight"] = known["fc"].astype(np.float32) * known["scale"].astype(np.float32)
    weights["fc.bias"] = known["bias"].astype(np.float32)
    return weights


def pixel_digest(file: bytes) -> NDArray[np.uint8]:
    """Digest (8,) of what a decoder makes of an image file: size, orientation, RGB pixels.

    Not of the file: another encoder release may order its markers otherwise, to no effect.
    """
    with Image.open(io.BytesIO(file)) as image:
        header = f"{image.size} {image.getexif().get(_ORIENTATION, 1)} ".encode()
        digest = hashlib.sha256(header + image.convert("RGB").tobytes()).digest()
    return np.frombuffer(digest, np.uint8, 8)


def demo_variant() -> VariantConfig:
    """The known answer as the reference of a run: equal to the image, or failed."""
    source = "known answer of the embedded demo: synthetic images, says nothing about ImageNet"
    return VariantConfig(
        name="demo",
        model="base",
        images=DEMO_IMAGES,
        reference={
            name: Reference(source, 100 * top1 / DEMO_IMAGES, 100 * top5 / DEMO_IMAGES)
            for name, (top1, top5) in KNOWN_ANSWER.items()
        },
        tolerance={name: Tolerance(0, "the answer is known") for name in KNOWN_ANSWER},
        reference_word="known answer",
    )


class DemoSource:
    """The embedded default: its images, its weights and its known answer."""

    name = "demo"
    preprocess = "torchvision"
    backend = "torch"

    def __init__(self, request: Request) -> None:
        self.request = request
        self.published = demo_variant()
        self._weights = Path()

    def images(self, folder: Path, observer: Observer) -> Path:
        """Make the demo in ``<folder>/demo``, or find it there intact."""
        from eval.images.classes import imagenet_classes

        synsets = [row.synset for row in imagenet_classes()]
        data, self._weights = make_demo(
            folder / "demo",
            synsets,
            lambda done, total: observer(Event("making the demo", done, total)),
        )
        return data

    def own_preprocess(self) -> Preprocess:
        """See `eval.models.Source.own_preprocess`."""
        from eval.images.preprocess import PREPROCESS

        return PREPROCESS[self.preprocess]

    def load(self, classes: int, observer: Observer) -> Subject:  # noqa: ARG002
        """See `eval.models.Source.load`; the images are made before."""
        return load_network(self, self._weights, classes, CAUTION)


def open_source(request: Request) -> DemoSource:
    """See `eval.models.open_source`."""
    return DemoSource(request)


def make_demo(
    root: Path, synsets: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> tuple[Path, Path]:
    """Make the demo below `root`, or find it there intact, and return (val folder, weights file).

    `synsets` are the 1000 folder names in label order; image i goes to the i-th.
    `progress(done, total)` is called after each image. The folder appears complete or not at all.
    Raises `DataError` if the images come out with other pixels here than the known answer is
    for, if `root` holds something else, or if it cannot be written.
    """
    if len(set(synsets)) != DEMO_IMAGES:
        raise ValueError(f"expected {DEMO_IMAGES} different synsets, but got {len(set(synsets))}")
    root = Path(root)
    try:
        if not _is_intact(root, synsets):
            _replace(root, synsets, progress)
    except OSError as error:
        raise DataError(f"demo: cannot write {root}: {error}; name another folder") from error
    return root / "val", root / WEIGHTS_NAME


def _replace(
    root: Path, synsets: Sequence[str], progress: Callable[[int, int], None] | None
) -> None:
    """Make the demo beside `root`, then rename it, so that nobody sees half of it."""
    if root.exists() and any(root.iterdir()) and not (root / _MANIFEST).is_file():
        raise DataError(f"demo: {root} holds something else; name another folder, or empty it")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        made = Path(scratch) / "new"
        made.mkdir()
        _write_images(made / "val", synsets, progress)
        with (made / WEIGHTS_NAME).open("wb") as file:
            weights = demo_weights()
            names = {"StructuredToParameterName@@": _parameter_names(weights)}
            pickle.dump(weights | names, file, protocol=4)
        manifest = {"made_with": _made_with(), "sha256": _files_digest(made)}
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if root.exists() and not _is_intact(root, synsets):
            root.rename(Path(scratch) / "old")
        try:
            made.rename(root)
        except OSError:
            if not _is_intact(root, synsets):  # else another process was faster
                raise


def _write_images(
    val: Path, synsets: Sequence[str], progress: Callable[[int, int], None] | None
) -> None:
    known = fitted()["pixels"]
    paths = [val / synset / f"demo_{i:04d}.JPEG" for i, synset in enumerate(synsets)]

    def write(index: int) -> bool:
        file = demo_image(index)
        paths[index].parent.mkdir(parents=True)
        paths[index].write_bytes(file)
        return bool((pixel_digest(file) == known[index]).all())

    other = []
    with ThreadPoolExecutor() as pool:  # drawing and encoding release the interpreter lock
        for index, same in enumerate(pool.map(write, range(DEMO_IMAGES))):
            if not same:
                other.append(paths[index])
            if progress is not None:
                progress(index + 1, DEMO_IMAGES)
    if other:
        raise DataError(
            f"demo: {len(other)} of {DEMO_IMAGES} images have other pixels here than the known "
            f"answer is for (first: {other[0].relative_to(val)}); {_made_with()['decoder']} "
            "encodes or decodes differently.\n"
            "The demo needs a Pillow whose libjpeg-turbo is exact, such as the wheels on PyPI."
        )


def _parameter_names(weights: dict[str, NDArray[np.float32]]) -> dict[str, str]:
    """The table that Paddle stores beside the tensors; readers drop it."""
    kinds = {"weight": "w_0", "bias": "b_0", "_mean": "w_1", "_variance": "w_2"}
    layers: dict[str, str] = {}
    names = {}
    for name in weights:
        layer, parameter = name.rsplit(".", 1)
        kind_of_layer = "batch_norm2d" if layer.endswith(".bn") else "conv2d"
        kind_of_layer = "linear" if layer == "fc" else kind_of_layer
        number = sum(other.startswith(kind_of_layer) for other in layers.values())
        layers.setdefault(layer, f"{kind_of_layer}_{number}")
        names[name] = f"{layers[layer]}.{kinds[parameter]}"
    return names


def _made_with() -> dict[str, str]:
    """What the files depend on: a demo made with other versions is made anew."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    fit = (resources.files("eval") / "resources" / "demo.npz").read_bytes()
    return {
        "decoder": f"Pillow {PIL.__version__} with libjpeg {jpeg}",
        "fit": hashlib.sha256(fit).hexdigest(),
    }


def _is_intact(root: Path, synsets: Sequence[str]) -> bool:
    """Are the files at `root` byte for byte those that were written, with these versions?"""
    try:
        manifest = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
        folders = sorted(folder.name for folder in (root / "val").iterdir())
        return folders == sorted(synsets) and manifest == {
            "made_with": _made_with(),
            "sha256": _files_digest(root),
        }
    except (OSError, ValueError):
        return False


def _files_digest(root: Path) -> str:
    """SHA-256 over the names and contents of all files below `root` but the manifest."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path != root / _MANIFEST:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
