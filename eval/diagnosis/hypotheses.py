"""The known mistakes: what each changes, and what to do about it.

A row is a change to a setup. It may have several readings, such as the channels being reversed
before or after the normalization; they share a name. A change that changes nothing in the setup at
hand is not tried.

``python -m eval.diagnosis.hypotheses`` prints the table of docs/diagnosis.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from eval.backends import BACKENDS
from eval.diagnosis.pixels import (
    KERNELS,
    OPENCV,
    SHORT,
    SIDES,
    SQUASH,
    TENSOR_KERNELS,
    TORCHVISION,
    Recipe,
    scaled,
)
from eval.diagnosis.setups import TABLES, Facts, Setup
from eval.request import FORMS

Change = Callable[[Setup, Facts], Iterator[Setup]]


@dataclass(frozen=True)
class Hypothesis:
    """A known mistake.

    Attributes:
        key, value: its name, as in the JSON: ``channels``, ``bgr``.
        what: what is changed, in words.
        advice: what to do if it explains the accuracy, a sentence.
        change: gives every reading of it, as a changed setup; nothing where it does not apply.
    """

    key: str
    value: str
    what: str
    advice: str
    change: Change

    @property
    def name(self) -> str:
        """``key: value``."""
        return f"{self.key}: {self.value}"

    @property
    def is_about_labels(self) -> bool:
        """Whether it only changes which prediction is the right one."""
        return self.key == "labels"


# --- Pixels -------------------------------------------------------------------------------------


def _recipe(change: Callable[[Recipe, Facts], Recipe]) -> Change:
    """Another way from an image file to a crop."""

    def setups(setup: Setup, facts: Facts) -> Iterator[Setup]:
        yield replace(setup, recipe=replace(change(setup.recipe, facts), is_exact=True))

    return setups


def _kernel(kernel: str) -> Change:
    """Another kernel of Pillow's; in place of another library, all of Pillow's pipeline."""

    def change(recipe: Recipe, facts: Facts) -> Recipe:
        short = scaled(SHORT, facts.size) if recipe.squash else recipe.short
        pillow = replace(TORCHVISION, size=facts.size, is_reversed=recipe.is_reversed)
        base = recipe if recipe.resizer == recipe.decoder == pillow.decoder else pillow
        return replace(base, kernel=kernel, short=short, squash=False)

    return _recipe(change)


def _without_antialias(recipe: Recipe, facts: Facts) -> Recipe:
    kernel = recipe.kernel if recipe.kernel in TENSOR_KERNELS else TENSOR_KERNELS[0]
    short = scaled(SHORT, facts.size) if recipe.squash else recipe.short
    return replace(recipe, resizer="tensor", kernel=kernel, short=short, squash=False)


def _pipeline(pipeline: Recipe) -> Change:
    return _recipe(
        lambda recipe, facts: replace(
            pipeline,
            size=facts.size,
            short=scaled(SHORT, facts.size),
            is_reversed=recipe.is_reversed,
        )
    )


def _side(side: int) -> Change:
    return _recipe(
        lambda recipe, facts: replace(recipe, short=scaled(side, facts.size), squash=False)
    )


def _offset(offset: str) -> Change:
    return _recipe(lambda recipe, _: replace(recipe, offset=offset))


def _long_side(long_side: str) -> Change:
    return _recipe(lambda recipe, _: replace(recipe, long_side=long_side))


# --- Normalized values --------------------------------------------------------------------------


def _reversed_channels(setup: Setup, _: Facts) -> Iterator[Setup]:
    """Reversed after the normalization, or before it, so that means and deviations change place."""
    yield replace(setup, order={"rgb": "bgr", "bgr": "rgb"}[setup.order])
    recipe = setup.recipe
    yield replace(setup, recipe=replace(recipe, is_reversed=not recipe.is_reversed))


def _table(name: str) -> Change:
    def setups(setup: Setup, _: Facts) -> Iterator[Setup]:
        yield replace(setup, table=TABLES[name])

    return setups


def _caffe(setup: Setup, _: Facts) -> Iterator[Setup]:
    yield replace(setup, table=TABLES["caffe"], order="bgr")


def _own_table(setup: Setup, facts: Facts) -> Iterator[Setup]:
    yield replace(setup, table=facts.own_table)


def _axes(axes: str) -> Change:
    def setups(setup: Setup, _: Facts) -> Iterator[Setup]:
        yield replace(setup, axes=axes)

    return setups


# --- Model --------------------------------------------------------------------------------------


def _edit(name: str) -> Change:
    def setups(setup: Setup, facts: Facts) -> Iterator[Setup]:
        if name in facts.edits.get(setup.form, ()):
            yield replace(setup, edits=(*setup.edits, name))

    return setups


def _form(form: str) -> Change:
    def setups(setup: Setup, facts: Facts) -> Iterator[Setup]:
        if form in facts.forms:
            yield replace(setup, form=form)

    return setups


def _backend(backend: str) -> Change:
    def setups(setup: Setup, facts: Facts) -> Iterator[Setup]:
        if backend in facts.backends:
            yield replace(setup, backend=backend)

    return setups


def _exact_precision(setup: Setup, facts: Facts) -> Iterator[Setup]:
    if facts.has_precisions:
        yield replace(setup, precision="fp32")


# --- Labels -------------------------------------------------------------------------------------


def _labels(value: str) -> Change:
    def setups(setup: Setup, facts: Facts) -> Iterator[Setup]:
        for name in facts.orders:
            if name.partition("/")[0] == value:
                yield replace(setup, labels=name)

    return setups


_RESIZE = "Resize as the model was trained and tested: "
_NORMALIZE = "Normalize as the model was trained: "
_LABELS = "Map the model's outputs to the sorted synsets: "
_EPS = "Set the epsilon of batch normalization that the model was trained with: "

TABLE: tuple[Hypothesis, ...] = (
    Hypothesis(
        "channels", "bgr", "blue, green, red in place of red, green, blue",
        "Give the model images in BGR order, or reverse the input channels of its first "
        "convolution once.",
        _reversed_channels,
    ),
    Hypothesis(
        "normalization", "half", "mean and standard deviation 0.5: -1..1",
        _NORMALIZE + "mean and standard deviation 0.5.",
        _table("half"),
    ),
    Hypothesis(
        "normalization", "unit", "0..1 and nothing else",
        _NORMALIZE + "divide by 255 and omit the mean and standard deviation.",
        _table("unit"),
    ),
    Hypothesis(
        "normalization", "levels", "0..255 and nothing else",
        _NORMALIZE + "levels 0..255, not divided by 255; the model has its own scaling inside.",
        _table("levels"),
    ),
    Hypothesis(
        "normalization", "imagenet", "ImageNet's mean and standard deviation",
        _NORMALIZE + "mean 0.485 0.456 0.406 and standard deviation 0.229 0.224 0.225.",
        _table("imagenet"),
    ),
    Hypothesis(
        "normalization", "clip", "CLIP's mean and standard deviation",
        _NORMALIZE + "mean 0.4815 0.4578 0.4082 and standard deviation 0.2686 0.2613 0.2758.",
        _table("clip"),
    ),
    Hypothesis(
        "normalization", "caffe", "BGR levels 0..255, the mean subtracted, no standard deviation",
        _NORMALIZE + "BGR levels with the means 103.939 116.779 123.68 subtracted.",
        _caffe,
    ),
    Hypothesis(
        "normalization", "bgr-means", "ImageNet's mean and standard deviation in BGR order",
        _NORMALIZE + "its means and standard deviations are in the order blue, green, red.",
        _table("bgr-means"),
    ),
    Hypothesis(
        "normalization", "model", "the model's own mean and standard deviation",
        _NORMALIZE + "its own configuration says how; omit --preprocess.",
        _own_table,
    ),
    # Single steps come before whole pipelines: where both make the same setup, it has their name.
    Hypothesis(
        "exif", "applied", "images are turned as their EXIF tag says",
        "Turn images by their EXIF tag before resizing.",
        _recipe(lambda recipe, _: replace(recipe, exif=True)),
    ),
    Hypothesis(
        "exif", "ignored", "images are not turned by their EXIF tag",
        "Do not turn images by their EXIF tag: ImageNet's models were trained without.",
        _recipe(lambda recipe, _: replace(recipe, exif=False)),
    ),
    Hypothesis(
        "ink", "standard", "CMYK images are converted with their black, not inverted",
        "Convert CMYK images as Pillow does.",
        _recipe(lambda recipe, _: replace(recipe, ink="standard")),
    ),
    Hypothesis(
        "crop", "centered", "the crop is in the center, not a pixel off",
        "Take the crop from the center of the resized image.",
        _recipe(lambda recipe, _: replace(recipe, shift=(0, 0))),
    ),
    *(
        Hypothesis(
            "crop", offset, f"a crop between two pixels is {offset}",
            f"Place the crop as the model's own pipeline does: half pixels are {offset}.",
            _offset(offset),
        )
        for offset in ("rounded", "floored")
    ),
    *(
        Hypothesis(
            "long_side", long_side, f"the long side is {long_side} to whole pixels",
            f"Resize as the model's own pipeline does: the long side is {long_side}.",
            _long_side(long_side),
        )
        for long_side in ("truncated", "rounded")
    ),
    *(
        Hypothesis(
            "resize", kernel, f"Pillow's {kernel}, antialiased, aspect kept",
            f"{_RESIZE}Pillow's {kernel}, antialiased.",
            _kernel(kernel),
        )
        for kernel in KERNELS
    ),
    Hypothesis(
        "resize", "no-antialias", "torchvision's resize of a tensor, without antialias",
        f"{_RESIZE}on a tensor and without antialias.",
        _recipe(_without_antialias),
    ),
    Hypothesis(
        "resize", "opencv", "OpenCV's decoder and bilinear resize, as PaddleClas has them",
        "Evaluate with --preprocess paddle: the model was trained with OpenCV.",
        _pipeline(OPENCV),
    ),
    Hypothesis(
        "resize", "squash", "to a square with OpenCV, whatever the aspect",
        "Evaluate with --preprocess squash: the model was trained on squashed images.",
        _pipeline(SQUASH),
    ),
    *(
        Hypothesis(
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
        _axes("wh"),
    ),
    Hypothesis(
        "layout", "reshaped", "rows of pixels are taken for planes of channels",
        "Transpose images to channels first; a reshape in its place scrambles them.",
        _axes("flat"),
    ),
    Hypothesis(
        "layout", "transposed-classifier", "the square matrix of the classifier is transposed",
        "Transpose the weight of the classifier: Paddle and TensorFlow store it the other way.",
        _edit("transposed-classifier"),
    ),
    Hypothesis(
        "labels", "plus-1", "the model answers k + 1 for class k",
        _LABELS + "they are one too high; subtract 1.",
        _labels("plus-1"),
    ),
    Hypothesis(
        "labels", "minus-1", "the model answers k - 1 for class k",
        _LABELS + "they are one too low; add 1.",
        _labels("minus-1"),
    ),
    Hypothesis(
        "labels", "background-first", "one more output than classes, the first for the background",
        _LABELS + "drop the first output, which is a background class.",
        _labels("background-first"),
    ),
    Hypothesis(
        "labels", "ilsvrc-id", "outputs are in the order of the devkit's ILSVRC ids",
        _LABELS + "they are in the order of the ILSVRC ids of the devkit (meta.mat).",
        _labels("ilsvrc-id"),
    ),
    Hypothesis(
        "labels", "name-order", "outputs are in the alphabetical order of the class names",
        _LABELS + "they are in the alphabetical order of the names.",
        _labels("name-order"),
    ),
    Hypothesis(
        "labels", "folder-order", "outputs are numbered over the folders that are there",
        _LABELS + "they were numbered over a partial set of folders, such as ImageFolder does.",
        _labels("folder-order"),
    ),
    Hypothesis(
        "labels", "list-order", "outputs are in the order in which a flat list shows the classes",
        _LABELS + "they were numbered in the order of first appearance in a list of images.",
        _labels("list-order"),
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
        _exact_precision,
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
