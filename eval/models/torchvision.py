"""``--model torchvision:NAME``: torchvision's image classifiers with their published weights.

NAME is the name of a model or of its weights: ``resnet50``, ``ResNet50_Weights.IMAGENET1K_V1``. The
entry of the weights enum gives the preprocessing and the published accuracy
(torchvision/models/_api.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config import IMAGENET_VAL_IMAGES, Reference, VariantConfig
from eval.errors import ModelError, UsageError
from eval.models import RequestedImages, Subject, did_you_mean, identify, judged_by
from eval.progress import Event, Observer
from eval.recipe import OWN, Recipe
from eval.request import Request

if TYPE_CHECKING:
    from torch import nn

    from eval.images.preprocess import Preprocess
    from eval.models.stored import Loaded

PREFIX = "torchvision:"
_OLD_DENSENET = re.compile(r"(\.denselayer[0-9]+\.(?:norm|relu|conv))\.(?=[12]\.)")
SET = "ImageNet-1K"  # torchvision's name of the validation set in the weights enum


class TorchvisionSource(RequestedImages):
    """A torchvision model and an entry of its weights enum."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        assert request.library_model is not None
        if request.forms and tuple(request.forms) != ("unfused",):
            raise UsageError(
                f"--forms {','.join(request.forms)}: torchvision has no reparameterized forms.\n"
                "Use --forms unfused."
            )
        self.model, self.entry = find_weights(request.library_model.removeprefix(PREFIX))
        self.name = f"{self.model}.{self.entry.name}"
        found = published(self.name, self.model, self.entry)
        self.published = request.published or judged_by(found, found.reference.get(OWN), request)

    def own_preprocess(self) -> Preprocess:
        """See `eval.models.Source.own_preprocess`."""
        return preprocess_of(self.entry)

    def load(self, classes: int, observer: Observer) -> Subject:
        """See `eval.models.Source.load`."""
        from eval.models.stored import files_of, subject_of

        path = self._checkpoint(observer)
        files = identify(files_of(path))
        loaded = load_model(self.model, path, classes, self.request.weights_entry or "")
        forms = {"unfused": loaded.model}
        return subject_of(self, path, files, loaded, forms)

    def _checkpoint(self, observer: Observer) -> Path:
        if self.request.weights != "auto":
            return Path(self.request.weights)
        import torch

        observer(Event(message=f"{self.name}: {self.entry.url}"))
        try:
            self.entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # network errors, disk errors, and a wrong hash
            raise ModelError(
                f"{self.entry.url} could not be downloaded ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:120]}).\nGive a file with --weights."
            ) from error
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(self.entry.url).name


def find_weights(name: str) -> tuple[str, Any]:
    """Find the model's name and the entry of its weights enum, by the name of either."""
    import torchvision
    from torchvision import models

    known = list(models.list_models(module=models))
    model, _, tag = name.partition(".")
    try:
        if model in known:
            entries = models.get_model_weights(model)
            return model, entries[tag] if tag else entries.DEFAULT
        entry = models.get_weight(name)
        return next(n for n in known if models.get_model_weights(n) is type(entry)), entry
    except (KeyError, ValueError, StopIteration):
        hint = did_you_mean(model.lower(), known)
        if model in known:
            hint = f" It has {', '.join(e.name for e in models.get_model_weights(model))}."
        raise UsageError(
            f"--model {PREFIX}{name}: torchvision {torchvision.__version__} has no such "
            f"classifier.{hint}"
        ) from None


def published(name: str, model: str, entry: Any) -> VariantConfig:
    """The accuracy, in percent, that torchvision publishes for weights: shown, not gated."""
    metrics = entry.meta.get("_metrics", {}).get(SET, {})
    reference = {}
    if metrics:
        source = f"torchvision, {type(entry).__name__}.{entry.name}"
        reference[OWN] = Reference(source, metrics.get("acc@1"), metrics.get("acc@5"), gated=False)
    return VariantConfig(name, f"{PREFIX}{model}", IMAGENET_VAL_IMAGES, reference, {})


def load_model(name: str, path: Path, classes: int, entry: str = "") -> Loaded:
    """Load a torchvision model, in evaluation mode; no code in the checkpoint is run.

    Raises:
        ModelError: the checkpoint cannot be read, does not fit, or holds what is not finite or no
            floating-point number.
    """
    from torchvision import models

    from eval.models.stored import Loaded, check_types, misfit, read_tensors

    found = read_tensors(path, entry)
    # Old checkpoints of DenseNet separate the names of its layers by a dot (models/densenet.py).
    tensors = {_OLD_DENSENET.sub(r"\1", key): each for key, each in found.tensors.items()}
    options: dict[str, Any] = {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": True, "transform_input": True, "init_weights": False}
    model: nn.Module = models.get_model(name, weights=None, **options)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        advice = "Use a checkpoint of this model."
        raise misfit(path, f"torchvision's {name}", classes, error, advice) from error
    check_types(path, tensors, model)
    return Loaded("torchvision", name, model.eval(), found)


def preprocess_of(entry: Any) -> Preprocess:
    """The preprocessing that belongs to an entry of the weights enum.

    Raises:
        UsageError: its transform is not a resize, a center crop and a normalization
            (``transforms/_presets.py``, ImageClassification).
    """
    from eval.images.preprocess import Preprocess

    transform = entry.transforms()
    try:
        (short,), (size,) = transform.resize_size, transform.crop_size
        recipe = Recipe(
            resize=short,
            interpolation=transform.interpolation.value,
            size=size,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        )
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"--model: the transform of {entry} is not torchvision's ImageClassification preset."
        ) from None
    return Preprocess.of(recipe)


def open_source(request: Request) -> TorchvisionSource:
    """See `eval.models.open_source`."""
    return TorchvisionSource(request)
