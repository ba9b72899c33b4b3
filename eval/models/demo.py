"""The embedded demo: a small 1000-class validation set, and weights with known counts for it.

The images are drawn in integer arithmetic from a frozen random generator and have the same kinds of
unusual files as ImageNet. The weights are a random backbone with calibrated batch normalization
statistics, and a head that `scripts/make_demo.py` fitted once, with timm's model and torchvision's
transforms and none of our code, so that 437 of the 1000 predictions are correct. A pipeline with
another channel order, crop, resize, batch normalization, branch or dropout factor gets different
counts.

Only numpy and Pillow are needed here. The counts say nothing about accuracy on ImageNet.
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
from eval.models import Subject
from eval.models.variants import load_network
from eval.progress import Event, Observer
from eval.request import Request

if TYPE_CHECKING:
    from eval.images.preprocess import Preprocess
    from eval.images.sets import ImageSet

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

# Kinds of the unusual images among every 40; the others are plain baseline RGB.
_KINDS = {
    3: "gray",
    11: "cmyk",
    17: "rotated",
    23: "tiny",
    29: "progressive",
    31: "panorama",
    37: "rotated",
}
_HUGE = {137: (2800, 2100), 500: (2100, 2800), 862: (2600, 1900)}
_PNG = 421  # ImageNet also has a PNG: n02105855_2933.JPEG

# Stages of base: output channels, depthwise kernel, split pointwise, branches, SE, blocks.
_STAGES = (
    (128, 3, False, False, False, 2),
    (256, 3, False, False, False, 2),
    (512, 5, True, True, True, 6),
    (1024, 5, False, True, False, 2),
)


def kind(index: int) -> str:
    """The kind of image `index` (0..999): a value of `_KINDS`, ``huge``, ``png`` or ``plain``."""
    if index in _HUGE:
        return "huge"
    return "png" if index == _PNG else _KINDS.get(index % 40, "plain")


def demo_image(index: int) -> bytes:
    """Make the file of image `index` (0..999), with the same pixels on every machine."""
    random = np.random.RandomState(_IMAGE_SEED + index)
    odd = kind(index)
    if odd == "huge":
        width, height = _HUGE[index]
        image = Image.fromarray(_draw(random, width // 4, height // 4).repeat(4, 0).repeat(4, 1))
    else:
        image = Image.fromarray(_draw(random, *_size(random, odd)))
    if odd == "gray":
        image = image.convert("L")
    elif odd == "cmyk":
        # Not convert(): its K is always 0, so a reader that ignores K would go unnoticed.
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
    """Draw from low..high, inclusive; the same numbers on every platform."""
    return int(random.randint(low, high + 1, dtype=np.int64))


def _size(random: np.random.RandomState, odd: str) -> tuple[int, int]:
    """Draw (width, height): a third portrait, with sizes that cover all rounding cases."""
    short = _integer(random, 33, 80) if odd == "tiny" else _integer(random, 230, 400)
    percent = _integer(random, 200, 330) if odd == "panorama" else _integer(random, 100, 160)
    long = short * percent // 100
    return (short, long) if _integer(random, 0, 2) == 0 else (long, short)


def _draw(random: np.random.RandomState, width: int, height: int) -> NDArray[np.uint8]:
    """Draw a (height, width, 3) image: colored cells of five sizes under a few shapes.

    Cells and stripes give every image its own texture, with edges at all phases, so that a shifted
    crop or another resize changes the predictions.
    """
    down = np.arange(height, dtype=np.int32)[:, None]
    across = np.arange(width, dtype=np.int32)[None, :]
    image = np.zeros((height, width, 3), np.int16)
    image += random.randint(40, 216, 3, dtype=np.int16)
    for cell, most in (96, 70), (40, 70), (17, 70), (7, 40), (3, 20):
        strength = _integer(random, 0, most)
        shape = (height // cell + 2, width // cell + 2, 3)
        grid = random.randint(-strength, strength + 1, shape, dtype=np.int16)
        top, left = _integer(random, 0, cell - 1), _integer(random, 0, cell - 1)
        wide = grid.repeat(cell, 1)[:, left : left + width]
        image += wide.repeat(cell, 0)[top : top + height]
    for _ in range(_integer(random, 3, 8)):
        shape_kind = _integer(random, 0, 3)
        center_x, center_y = _integer(random, 0, width), _integer(random, 0, height)
        radius, period = _integer(random, 12, 110), _integer(random, 4, 40)
        slope_x, slope_y = _integer(random, -3, 3), _integer(random, -3, 3)
        # Only where the shape can be: stripes are everywhere, the others near their center.
        rows = (
            slice(max(0, center_y - radius), center_y + radius) if shape_kind < 2 else slice(None)
        )
        columns = slice(max(0, center_x - radius), center_x + radius)
        part = rows, slice(None) if shape_kind == 2 else columns
        y, x = down[part[0]], across[:, part[1]]
        if shape_kind == 0:
            mask = (abs(x - center_x) < radius) & (abs(y - center_y) < radius * 2 // 3)
        elif shape_kind == 1:
            mask = (x - center_x) ** 2 + (y - center_y) ** 2 < radius**2
        elif shape_kind == 2:
            mask = (slope_x * x + slope_y * y) // period % 2 == 0
        else:
            mask = ((x // period + y // period) % 2 == 0) & (abs(x - center_x) < radius)
        image[part] += mask[:, :, None] * random.randint(-120, 121, 3, dtype=np.int16)
    return image.clip(0, 255).astype(np.uint8)


def backbone_weights(statistics: NDArray[np.float16] | None) -> dict[str, NDArray[np.float32]]:
    """Draw all weights except `fc`.

    Args:
        statistics: (2, channels), the means and variances of batch normalization, in the order of
            the weights; None for 0 and 1.

    Returns:
        Tensors by Paddle's names.
    """
    return _Backbone(statistics).weights


class _Backbone:
    """Draws PPLCNetV2_base without `fc`, with Paddle's names and in Paddle's order."""

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
                    # As in the official code, there is no 1x1 branch if the stride is 2.
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
        """Draw from (low..high) / 64, which is exact in float32."""
        drawn = self._random.randint(low, high + 1, shape, dtype=np.int16)
        return drawn.astype(np.float32) / np.float32(64)

    def _conv(self, name: str, out: int, width: int, kernel: int) -> None:
        # Depthwise weights are mostly positive, so that the features are not just noise.
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
        # In some channels the variance is close to epsilon, so that a wrong epsilon is noticed.
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
        """Add the unused merged convolution of official files, as noise: using it is noticed."""
        self.weights[f"{name}.weight"] = self._uniform(-64, 64, width, 1, kernel, kernel)
        self.weights[f"{name}.bias"] = self._uniform(-64, 64, width)


@cache
def fitted() -> dict[str, NDArray[np.generic]]:
    """Read the arrays that scripts/make_demo.py fitted.

    Returns:
        ``fc`` int8 (1280, 1000), with ``scale`` and ``bias`` float32 (1000,);
        ``statistics`` float16 (2, channels), the means and variances of batch normalization, in the
        order of the weights;
        ``pixels`` uint8 (1000, 8), the digests of the images;
        ``outcome`` uint8 (preprocessings, 1000): 0 for an image that is correct, 1 for one that is
        correct in the top-5 only, 2 for one that is wrong.
    """
    with (resources.files("eval") / "resources" / "demo.npz").open("rb") as file:
        return dict(np.load(file))


def demo_weights() -> dict[str, NDArray[np.float32]]:
    """The weights of the demo: PPLCNetV2_base in Paddle's layout, float32, always bit-identical."""
    known = fitted()
    weights = backbone_weights(known["statistics"].astype(np.float16))
    weights["fc.weight"] = known["fc"].astype(np.float32) * known["scale"].astype(np.float32)
    weights["fc.bias"] = known["bias"].astype(np.float32)
    return weights


def pixel_digest(file: bytes) -> NDArray[np.uint8]:
    """Digest, uint8 (8,), of a decoded image file: size, orientation, RGB pixels.

    The digest is not of the file's bytes, because another version of the encoder may write its
    markers in another order, without any effect on the pixels.
    """
    with Image.open(io.BytesIO(file)) as image:
        header = f"{image.size} {image.getexif().get(_ORIENTATION, 1)} ".encode()
        digest = hashlib.sha256(header + image.convert("RGB").tobytes()).digest()
    return np.frombuffer(digest, np.uint8, 8)


def demo_variant() -> VariantConfig:
    """The configuration of the demo: its known answer is the reference, with zero tolerance."""
    source = "computed once for the embedded demo; says nothing about ImageNet"
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
    """The embedded demo: its images, its weights and its known answer."""

    name = "demo"
    backend = "torch"

    def __init__(self, request: Request) -> None:
        self.request = request
        self.published = demo_variant()
        self._weights = Path()

    def images(self, folder: Path, observer: Observer) -> Path:
        """Make the demo in ``<folder>/demo``, unless it is already there and intact."""
        from eval.images.classes import imagenet_classes

        synsets = [row.synset for row in imagenet_classes()]
        data, self._weights = make_demo(
            folder / "demo",
            synsets,
            lambda done, total: observer(Event("making the demo", done, total)),
        )
        return data

    @property
    def image_set(self) -> ImageSet:
        """The images that the known answer is of; `make_demo` checks their pixels."""
        from eval.images.sets import ImageSet

        return ImageSet("the embedded demo", DEMO_IMAGES, is_judged=True)

    def own_preprocess(self) -> Preprocess:
        """See `eval.models.Source.own_preprocess`."""
        from eval.images.preprocess import PREPROCESS

        return PREPROCESS["torchvision"]

    def load(self, classes: int, observer: Observer) -> Subject:  # noqa: ARG002
        """See `eval.models.Source.load`; call `images` first, which also makes the weights."""
        return load_network(self, self._weights, classes, CAUTION)


def open_source(request: Request) -> DemoSource:
    """See `eval.models.open_source`."""
    return DemoSource(request)


def make_demo(
    root: Path, synsets: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> tuple[Path, Path]:
    """Make the demo in the folder `root`, unless it is already there and intact.

    The folder appears complete or not at all.

    Args:
        root: the folder of the demo.
        synsets: the 1000 folder names in label order; image i goes into the i-th.
        progress: called with (done, total) after each image.

    Returns:
        The folder of the validation set, and the checkpoint.

    Raises:
        DataError: the images have different pixels on this machine than the known answer was
            computed for, `root` contains something else, or it cannot be written.
        ValueError: the synsets are not 1000 different names.
    """
    if len(set(synsets)) != DEMO_IMAGES:
        raise ValueError(f"expected {DEMO_IMAGES} different synsets, but got {len(set(synsets))}")
    root = Path(root)
    try:
        if not _is_intact(root, synsets):
            _replace(root, synsets, progress)
    except OSError as error:
        raise DataError(f"demo: cannot write {root}: {error}; use another folder") from error
    return root / "val", root / WEIGHTS_NAME


def _replace(
    root: Path, synsets: Sequence[str], progress: Callable[[int, int], None] | None
) -> None:
    """Make the demo next to `root`, then rename it, so that it never appears half-written."""
    if root.exists() and any(root.iterdir()) and not (root / _MANIFEST).is_file():
        raise DataError(f"demo: {root} contains something else; use another folder, or empty it")
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
    with ThreadPoolExecutor() as pool:  # drawing and encoding release the interpreter's lock
        for index, same in enumerate(pool.map(write, range(DEMO_IMAGES))):
            if not same:
                other.append(paths[index])
            if progress is not None:
                progress(index + 1, DEMO_IMAGES)
    if other:
        raise DataError(
            f"demo: {len(other)} of {DEMO_IMAGES} images have different pixels on this machine "
            f"(first: {other[0].relative_to(val)}), because {_made_with()['decoder']} encodes or "
            "decodes differently.\n"
            "Use a Pillow with an exact libjpeg-turbo, such as the wheels on PyPI."
        )


def _parameter_names(weights: dict[str, NDArray[np.float32]]) -> dict[str, str]:
    """The table of names that Paddle stores next to the tensors; readers ignore it."""
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
    """The versions that the files depend on; a demo made with other versions is made again."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    fit = (resources.files("eval") / "resources" / "demo.npz").read_bytes()
    return {
        "decoder": f"Pillow {PIL.__version__} with libjpeg {jpeg}",
        "fit": hashlib.sha256(fit).hexdigest(),
    }


def _is_intact(root: Path, synsets: Sequence[str]) -> bool:
    """Whether the files in `root` are unchanged and were made with the current versions."""
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
    """SHA-256 over the names and contents of all files below `root`, except the manifest."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path != root / _MANIFEST:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
