"""The known mistakes: what each changes, and what to do about it.

A row is a change to a setup. It may have several readings, such as the channels being reversed
before or after the normalization; they share a name. A change that changes nothing in the setup at
hand is not tried.

``python -m eval.diagnosis.hypotheses`` prints the table of docs/diagnosis.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from eval.backends import BACKENDS
from eval.diagnosis.pixels import (
    KERNELS,
    OPENCV,
    SHORT,
    SIDES,
    in_library,
    in_other_library,
    scaled,
)
from eval.diagnosis.setups import Facts, Setup
from eval.recipe import INTERPOLATIONS, MEAN, STD, Recipe, Triple
from eval.request import FORMS

Change = Callable[[Setup, Facts], Iterable[Setup]]


@dataclass(frozen=True)
class Hypothesis:
    """A known mistake.

    Attributes:
        key, value: its name, as in the JSON: ``channels``, ``bgr``.
        what: what is changed, in words.
        advice: what to do if it explains the accuracy, a sentence.
        change: gives every reading of it, as a changed setup; nothing where it does not apply.
        elsewhere: the same change in the other library, for steps that libraries do differently.
    """

    key: str
    value: str
    what: str
    advice: str
    change: Change
    elsewhere: Change | None = None

    @property
    def name(self) -> str:
        """``key: value``."""
        return f"{self.key}: {self.value}"

    @property
    def is_about_labels(self) -> bool:
        """Whether it only changes which class a prediction is."""
        return self.key == "labels"


# --- Pixels -------------------------------------------------------------------------------------

Step = Callable[[Recipe], Iterable[Recipe]]


def _pixels(key: str, value: str, what: str, advice: str, step: Step) -> Hypothesis:
    """Another way to a crop: in the library at hand, and in the other one."""

    def change(setup: Setup, _: Facts) -> Iterator[Setup]:
        for recipe in step(setup.recipe):
            yield replace(setup, recipe=recipe)

    def elsewhere(setup: Setup, _: Facts) -> Iterator[Setup]:
        other = in_other_library(setup.recipe)
        for recipe in step(other):
            if recipe != other:  # the other library alone has a row of its own
                yield replace(setup, recipe=recipe)

    return Hypothesis(key, value, what, advice, change, elsewhere)


def _set(**changes: str | bool | tuple[int, int]) -> Step:
    return lambda recipe: [replace(recipe, **changes)]  # type: ignore[arg-type]


def _rounding(rounding: str) -> Step:
    def recipes(recipe: Recipe) -> Iterator[Recipe]:
        if recipe.resize is not None and not recipe.square:
            yield replace(recipe, rounding=rounding)

    return recipes


def _kernel(kernel: str) -> Step:
    """Another kernel; for the one that is used, Pillow's, if it is not that."""

    def recipes(recipe: Recipe) -> Iterator[Recipe]:
        if kernel in INTERPOLATIONS[recipe.resizer]:
            yield replace(recipe, interpolation=kernel)
        if kernel == recipe.interpolation and recipe.resizer != "pillow":
            yield in_other_library(recipe)

    return recipes


def _without_antialias(recipe: Recipe) -> Iterator[Recipe]:
    known = INTERPOLATIONS["tensor"]
    kernel = recipe.interpolation if recipe.interpolation in known else KERNELS[0]
    yield replace(recipe, resizer="tensor", interpolation=kernel, antialias=False)


def _square(recipe: Recipe) -> Iterator[Recipe]:
    """With the usual margin around the crop, and without."""
    for side in (scaled(SHORT, recipe.size), recipe.size):
        yield replace(recipe, square=True, resize=side)


def _side(side: int) -> Step:
    return lambda recipe: [replace(recipe, resize=scaled(side, recipe.size), square=False)]


def _opencv(setup: Setup, _: Facts) -> Iterator[Setup]:
    """PaddleClas's pipeline, with its own resize and with the one at hand.

    Where OpenCV does all of it already, its rounding and its crop have rows of their own.
    """
    if setup.recipe.decode == setup.recipe.resizer == "opencv":
        return
    recipe = in_library(setup.recipe, OPENCV)
    plain = replace(recipe, resize=scaled(SHORT, recipe.size), square=False)
    yield replace(setup, recipe=replace(plain, interpolation=KERNELS[0]))
    yield replace(setup, recipe=recipe)


# --- Normalized values --------------------------------------------------------------------------

_HALF, _ZERO, _ONE = ((value,) * 3 for value in (0.5, 0.0, 1.0))

_NORMALIZE = "Normalize as the model was trained: "

# Scale, mean and standard deviation of red, green and blue.
NORMALIZATIONS: dict[str, tuple[float, Triple, Triple]] = {
    "half": (255.0, _HALF, _HALF),
    "unit": (255.0, _ZERO, _ONE),
    "levels": (1.0, _ZERO, _ONE),
    "imagenet": (255.0, MEAN, STD),
    # openai/CLIP clip.py, _transform
    "clip": (
        255.0, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    "caffe": (1.0, (123.68, 116.779, 103.939), _ONE),  # BVLC/caffe
    "bgr-means": (255.0, (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)),
}  # fmt: skip


def normalized(recipe: Recipe, name: str) -> Recipe:
    """A recipe with one of `NORMALIZATIONS`; levels to 0..1 stay as the library computes them."""
    scale, mean, std = NORMALIZATIONS[name]
    if recipe.channels == "bgr":
        mean, std = _reversed(mean), _reversed(std)
    is_usual = scale == 255 and recipe.scale in (255.0, 1 / 255)
    return replace(recipe, scale=recipe.scale if is_usual else scale, mean=mean, std=std)


def _reversed(values: Triple) -> Triple:
    first, second, third = values
    return third, second, first


def _reversed_channels(setup: Setup, _: Facts) -> Iterator[Setup]:
    """Reversed after the normalization, or before it, so that means and deviations change place."""
    recipe = setup.recipe
    before = replace(recipe, channels={"rgb": "bgr", "bgr": "rgb"}[recipe.channels])
    after = replace(before, mean=_reversed(recipe.mean), std=_reversed(recipe.std))
    yield replace(setup, recipe=after)
    yield replace(setup, recipe=before)


def _normalization(name: str, what: str, advice: str) -> Hypothesis:
    def change(setup: Setup, _: Facts) -> Iterator[Setup]:
        yield replace(setup, recipe=normalized(setup.recipe, name))

    return Hypothesis("normalization", name, what, _NORMALIZE + advice, change)


def _caffe(setup: Setup, _: Facts) -> Iterator[Setup]:
    yield replace(setup, recipe=normalized(replace(setup.recipe, channels="bgr"), "caffe"))


# --- Model --------------------------------------------------------------------------------------


def _edit(name: str) -> Change:
    def setups(setup: Setup, facts: Facts) -> Iterator[Setup]:
        if name in facts.edits.get(setup.form, ()):
            yield replace(setup, edits=(*setup.edits, name))

    return setups


def _form(form: str) -> Change:
    return lambda setup, facts: [replace(setup, form=form)] if form in facts.forms else []


def _backend(backend: str) -> Change:
    return lambda setup, facts: (
        [replace(setup, backend=backend)] if backend in facts.backends else []
    )


# --- Labels -------------------------------------------------------------------------------------


def _order(value: str, what: str, advice: str) -> Hypothesis:
    """Another order of the classes; it may have several readings."""

    def change(setup: Setup, facts: Facts) -> Iterator[Setup]:
        for name in facts.orders:
            if name.partition("/")[0] == value:
                yield replace(setup, labels=name)

    advice = f"Map the model's outputs to the sorted synsets: {advice}"
    return Hypothesis("labels", value, what, advice, change)


_RESIZE = "Resize as the model was trained and tested: "
_EPS = "Set the epsilon of batch normalization that the model was trained with: "

TABLE: tuple[Hypothesis, ...] = (
    Hypothesis(
        "channels", "bgr", "blue, green, red in place of red, green, blue",
        "Give the model images in BGR order, or reverse the input channels of its first "
        "convolution once.",
        _reversed_channels,
    ),
    _normalization(
        "half", "mean and standard deviation 0.5: -1..1",
        "mean and standard deviation 0.5.",
    ),
    _normalization(
        "unit", "0..1 and nothing else",
        "divide by 255 and omit the mean and standard deviation.",
    ),
    _normalization(
        "levels", "0..255 and nothing else",
        "levels 0..255, not divided by 255; the model has its own scaling inside.",
    ),
    _normalization(
        "imagenet", "ImageNet's mean and standard deviation",
        "mean 0.485 0.456 0.406 and standard deviation 0.229 0.224 0.225.",
    ),
    _normalization(
        "clip", "CLIP's mean and standard deviation",
        "mean 0.4815 0.4578 0.4082 and standard deviation 0.2686 0.2613 0.2758.",
    ),
    Hypothesis(
        "normalization", "caffe", "BGR levels 0..255, the mean subtracted, no standard deviation",
        _NORMALIZE + "BGR levels with the means 103.939 116.779 123.68 subtracted.",
        _caffe,
    ),
    _normalization(
        "bgr-means", "ImageNet's mean and standard deviation in BGR order",
        "its means and standard deviations are in the order blue, green, red.",
    ),
    Hypothesis(
        "normalization", "model", "the model's own mean and standard deviation",
        _NORMALIZE + "its own configuration says how; omit --preprocess.",
        lambda setup, facts: [replace(setup, recipe=setup.recipe.normalized_as(facts.own))],
    ),
    # Where two rows make the same setup, it has the name of the first.
    Hypothesis(
        "resize", "opencv", "OpenCV's decoder and resize, as PaddleClas has them",
        "Decode and resize with OpenCV, as the model was trained.",
        _opencv,
    ),
    _pixels(
        "exif", "applied", "images are turned as their EXIF tag says",
        "Turn images by their EXIF tag before resizing.",
        _set(exif=True),
    ),
    _pixels(
        "exif", "ignored", "images are not turned by their EXIF tag",
        "Do not turn images by their EXIF tag: ImageNet's models were trained without.",
        _set(exif=False),
    ),
    _pixels(
        "cmyk", "standard", "CMYK images are converted with their black, not inverted",
        "Convert CMYK images as Pillow does.",
        _set(cmyk="standard"),
    ),
    _pixels(
        "crop", "centered", "the crop is in the center, not a pixel off",
        "Take the crop from the center of the resized image.",
        _set(shift=(0, 0)),
    ),
    *(
        _pixels(
            "crop", offset, f"a crop between two pixels is {offset}",
            f"Place the crop as the model's own pipeline does: half pixels are {offset}.",
            _set(offset=offset),
        )
        for offset in ("rounded", "floored")
    ),
    *(
        _pixels(
            "long_side", rounding, f"the long side is {rounding} to whole pixels",
            f"Resize as the model's own pipeline does: the long side is {rounding}.",
            _rounding(rounding),
        )
        for rounding in ("truncated", "rounded")
    ),
    *(
        _pixels(
            "resize", kernel, f"{kernel} interpolation",
            f"{_RESIZE}{kernel} interpolation.",
            _kernel(kernel),
        )
        for kernel in KERNELS
    ),
    _pixels(
        "resize", "no-antialias", "torchvision's resize of a tensor, without antialias",
        f"{_RESIZE}on a tensor and without antialias.",
        _without_antialias,
    ),
    _pixels(
        "resize", "squash", "to a square, whatever the aspect",
        f"{_RESIZE}to a square, whatever the aspect.",
        _square,
    ),
    *(
        _pixels(
            "resize", str(side),
            f"short side {side} before the crop of 224" + (", no margin" if side == 224 else ""),
            f"{_RESIZE}the short side to {side}, for a crop of 224.",
            _side(side),
        )
        for side in SIDES
    ),
    Hypothesis(
        "layout", "height-width-swapped", "height and width of the image are swapped",
        "Give the model images as height x width: the two are swapped somewhere.",
        lambda setup, _: [replace(setup, axes="wh")],
    ),
    Hypothesis(
        "layout", "reshaped", "rows of pixels are taken for planes of channels",
        "Transpose images to channels first; a reshape in its place scrambles them.",
        lambda setup, _: [replace(setup, axes="flat")],
    ),
    Hypothesis(
        "layout", "transposed-classifier", "the square matrix of the classifier is transposed",
        "Transpose the weight of the classifier: Paddle and TensorFlow store it the other way.",
        _edit("transposed-classifier"),
    ),
    _order(
        "plus-1", "the model answers k + 1 for class k",
        "they are one too high; subtract 1.",
    ),
    _order(
        "minus-1", "the model answers k - 1 for class k",
        "they are one too low; add 1.",
    ),
    _order(
        "background-first", "one more output than classes, the first for the background",
        "drop the first output, which is a background class (--background-first).",
    ),
    _order(
        "ilsvrc-id", "outputs are in the order of the devkit's ILSVRC ids",
        "they are in the order of the ILSVRC ids of the devkit (meta.mat).",
    ),
    _order(
        "name-order", "outputs are in the alphabetical order of the class names",
        "they are in the alphabetical order of the names.",
    ),
    _order(
        "folder-order", "outputs are numbered over the folders that are there",
        "they were numbered over a partial set of folders, such as ImageFolder does.",
    ),
    _order(
        "list-order", "outputs are in the order in which a flat list shows the classes",
        "they were numbered in the order of first appearance in a list of images.",
    ),
    *(
        Hypothesis(
            "bn_eps", eps, f"epsilon of batch normalization {eps}",
            f"{_EPS}{eps}.",
            _edit(f"bn-eps-{eps}"),
        )
        for eps in ("1e-3", "1e-5", "1e-6")
    ),
    Hypothesis(
        "dropout_factor", "left-out", "Paddle's factor of 1 - p in inference is left out",
        "The checkpoint has the dropout factor inside, or was trained without one: omit it.",
        _edit("no-dropout-factor"),
    ),
    Hypothesis(
        "dropout_factor", "twice", "Paddle's factor of 1 - p in inference is applied twice",
        "The checkpoint was divided by the dropout factor: multiply by it once more.",
        _edit("dropout-factor-twice"),
    ),
    *(
        Hypothesis(
            "form", form, f"the {form} form",
            f"The two forms differ: only the {form} one is sound. Convert the other one again.",
            _form(form),
        )
        for form in FORMS
    ),
    Hypothesis(
        "mode", "train", "batch normalization with the statistics of the images at hand",
        "The stored statistics of batch normalization are not those of the weights: save the "
        "checkpoint after training mode has updated them, or calibrate them again.",
        _edit("batch-statistics"),
    ),
    Hypothesis(
        "precision", "fp32", "float32 throughout",
        "The model does not tolerate the lower precision: use --precision fp32 or bf16.",
        lambda setup, facts: [replace(setup, precision="fp32")] if facts.has_precisions else [],
    ),
    *(
        Hypothesis(
            "backend", backend, f"the logits are computed by {backend}",
            f"The runtime that was used computes this model wrongly: use --backend {backend}, and "
            "report it to the other runtime's developers.",
            _backend(backend),
        )
        for backend in BACKENDS
    ),
)  # fmt: skip


def table() -> str:
    """The hypotheses as a Markdown table."""
    rows = [f"| `{row.key}` | `{row.value}` | {row.what} | {row.advice} |" for row in TABLE]
    return "\n".join(["| key | value | what is changed | advice |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
