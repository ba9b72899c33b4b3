"""``--model timm:NAME``: any timm image classifier, with timm's own preprocessing.

Our own reader loads the checkpoint, without running code in it, and passes the tensors to timm, so
that timm's own conversions of old checkpoints apply. The preprocessing is what timm's validate.py
evaluates the model with. Models with a deploy form (MobileOne,
FastViT, RepVGG, RepViT, ...) are reparameterized by timm's `reparameterize_model`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import timm.data
from huggingface_hub import hf_hub_download
from timm.models import get_pretrained_cfg
from timm.utils.model import reparameterize_model

from eval.config import IMAGENET_VAL_IMAGES, OtherResult, Reference, VariantConfig
from eval.errors import ModelError, UsageError
from eval.images.labels import examples, shown
from eval.images.preprocess import Crop, Preprocess, bad_image_errors, open_rgb, table_of
from eval.models import RequestedImages, Subject, did_you_mean, identify, judged_by
from eval.models.stored import Loaded, check_types, files_of, misfit, read_tensors, subject_of
from eval.progress import Event, Observer
from eval.recipe import INTERPOLATIONS, OWN, Recipe
from eval.request import Request

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm:"
WEIGHTS_FILE = "model.safetensors"  # in timm's repositories on the hub
_COLUMNS = ("model", "img_size", "top1", "top5", "crop_pct", "interpolation")


class TimmSource(RequestedImages):
    """A timm model.

    Attributes:
        beside: files beside the checkpoint that say what it is.
    """

    beside: tuple[Path, ...] = ()

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        assert request.library_model is not None
        results = request.timm_results
        found = timm_variant(request.library_model, Path(results) if results else None)
        self.name = self.model = found.name
        self.published = request.published or judged_by(found, _reference(found, request), request)

    def own_preprocess(self) -> Preprocess:
        """See `eval.models.Source.own_preprocess`."""
        return preprocess_of(self.model)

    def load(self, classes: int, observer: Observer) -> Subject:
        """See `eval.models.Source.load`."""
        if self.request.weights == "auto":
            observer(Event(message=f"{self.model}: looking for timm's weights"))
        path = weights_path(self.model, str(self.request.weights))
        files = identify((*files_of(path), *self.beside))
        loaded = load_model(self.model, path, classes, self.request.weights_entry or "")
        forms = forms_of(loaded.model, tuple(self.request.forms or ()), self.model)
        if len(forms) == 1 and not self.request.forms:
            observer(Event(message=f"{self.model}: no reparameterized form in timm"))
        return subject_of(self, path, files, loaded, forms)


def open_source(request: Request) -> TimmSource:
    """See `eval.models.open_source`."""
    return TimmSource(request)


def timm_variant(model: str, results: Path | None) -> VariantConfig:
    """The configuration of a timm model: no reference, but timm's own result if a table is given.

    Args:
        model: ``timm:NAME``, with or without the tag of its weights.
        results: timm's ``results-imagenet.csv``, or another table of the same kind.
    """
    name = model.removeprefix(PREFIX)
    if not model.startswith(PREFIX):
        raise UsageError(f"--model {model}: write {PREFIX}NAME, such as {PREFIX}mobileone_s1.")
    if not timm.is_model(name) or "/" in name:
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise UsageError(f"--model {model}: timm {timm.__version__} has no such model.{hint}")
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:
        known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise UsageError(f"--model {model}: timm only has {examples(known)}.") from None
    if cfg and cfg.tag and "." not in name:
        name = f"{name}.{cfg.tag}"
    others = (published(results, name),) if results else ()
    return VariantConfig(name, name, IMAGENET_VAL_IMAGES, {}, {}, others)


def published(results: Path, name: str) -> OtherResult:
    """Read a model's accuracy, in percent, from one of timm's tables of results."""
    try:
        with results.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--timm-results {results} cannot be read: {error}") from error
    missing = [column for column in _COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise UsageError(
            f"--timm-results {results} has no column {examples(missing)}.\n"
            "Use a table like timm's results-imagenet.csv."
        )
    found = [row for row in rows if row["model"] == name]
    if len(found) != 1:
        raise UsageError(f"--timm-results {results} has {len(found)} rows for {name}, not one.")
    row = found[0]
    try:
        source = f"{results.name}: {_settings({**row, 'input_size': (int(row['img_size']),)})}"
        return OtherResult("timm", source, float(row["top1"]), float(row["top5"]))
    except (TypeError, ValueError):
        cells = ", ".join(repr(row[column]) for column in _COLUMNS[1:5])
        raise UsageError(f"--timm-results {results}, {name}: {cells} are not numbers.") from None


def _reference(found: VariantConfig, request: Request) -> Reference | None:
    """The row of timm's table, as what a run of the model's own recipe is compared with."""
    if request.tolerance is None or not found.others:
        return None
    row = found.others[0]
    cfg = get_pretrained_cfg(found.model)
    stated = cfg.to_dict() if cfg else {}
    ours = _settings(timm.data.resolve_data_config({}, pretrained_cfg=stated, use_test_size=True))
    if not row.source.endswith(ours):
        raise UsageError(
            f"--tolerance: {row.source}, but {found.name} is evaluated at {ours}.\n"
            "Give the table that has the model's own test size."
        )
    return Reference(row.source, row.top1, row.top5)


def _settings(config: Mapping[str, Any]) -> str:
    size, crop = config["input_size"][-1], float(config["crop_pct"])
    return f"{size} pixels, crop_pct {crop}, {config['interpolation']}"


def weights_path(name: str, weights: str) -> Path:
    """The checkpoint: the given file, or timm's own from the Hugging Face hub."""
    if weights != "auto":
        return Path(weights)
    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        raise ModelError(
            f"timm has no weights for {name} on the Hugging Face hub.\nGive a file with --weights, "
            "or a name with a tag (see timm.list_models('NAME*', pretrained=True))."
        )
    repository, _, revision = cfg.hf_hub_id.partition("@")
    try:
        return Path(
            hf_hub_download(
                repository, cfg.hf_hub_filename or WEIGHTS_FILE, revision=revision or None
            )
        )
    except Exception as error:  # the hub's own errors, the network's, and the disk's
        raise ModelError(
            f"{repository} could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {shown(' '.join(str(error).split()))}).\n"
            "Give a file with --weights."
        ) from error


def load_model(name: str, path: Path, num_classes: int = 1000, entry: str = "") -> Loaded:
    """Load a timm model in its unfused form, in evaluation mode; no code in the file is run.

    Raises:
        ModelError: the weights cannot be read, do not fit, are not finite or not floating-point
            numbers, or have another number of classes.
    """
    found = read_tensors(path, entry)
    tensors = dict(found.tensors)
    # With num_classes, timm does not replace a classifier of another width by a random one.
    overlay: dict[str, Any] = {
        "state_dict": tensors,
        "source": "",
        "custom_load": False,
        "num_classes": num_classes,
    }
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes
        )
    except Exception as error:  # timm's conversions of old checkpoints raise errors of many types
        advice = "Use a checkpoint of this model in its unfused form (not reparameterized)."
        raise misfit(path, f"timm's {name}", num_classes, error, advice) from error
    classes = getattr(model, "num_classes", None)
    if classes != num_classes:
        raise ModelError(f"{name} has {classes} classes, not {num_classes}.")
    check_types(path, tensors, model)
    return Loaded("timm", name, model.eval(), found)


def forms_of(model: nn.Module, asked: tuple[str, ...], name: str) -> dict[str, nn.Module]:
    """The requested forms of a model, or all of its forms."""
    deploy = reparameterize_model(model).eval()
    if set(deploy.state_dict()) == set(model.state_dict()):
        if "reparameterized" in asked:
            raise UsageError(
                f"--forms {','.join(asked)}: timm has no reparameterized form of {name}.\n"
                "Use --forms unfused."
            )
        return {"unfused": model}
    forms = {"unfused": model, "reparameterized": deploy}
    return {form: forms[form] for form in asked or forms}


def preprocess_of(model: nn.Module | str) -> Preprocess:
    """The preprocessing that timm's ``validate.py`` evaluates a model with: at its test size."""
    cfg: dict[str, Any]
    if isinstance(model, str):
        found = get_pretrained_cfg(model)
        cfg = found.to_dict() if found else {}
    else:
        cfg = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    config = timm.data.resolve_data_config({}, pretrained_cfg=cfg, use_test_size=True)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UsageError(
            f"--model: input size {config['input_size']} is not supported, only square images of "
            "three channels."
        )
    recipe = recipe_of(config)
    if recipe is not None:
        return Preprocess.of(recipe)
    transform = timm.data.create_transform(**config, is_training=False, normalize=False)
    normalized = Recipe(mean=tuple(config["mean"]), std=tuple(config["std"]), size=width)
    return Preprocess(
        OWN,
        f"a transform of timm {timm.__version__} that no recipe can say: "
        f"{' '.join(repr(transform).split())}; mean {config['mean']}, std {config['std']}",
        partial(_crop_with, transform),
        table_of(normalized),
        size=width,
    )


def recipe_of(config: Mapping[str, Any]) -> Recipe | None:
    """What ``timm.data.create_transform`` makes of a configuration; None if no recipe says it.

    Args:
        config: as from ``timm.data.resolve_data_config``, with a square input.
    """
    size = config["input_size"][-1]
    kernel = {"box": "area"}.get(config["interpolation"], config["interpolation"])
    if config["crop_mode"] not in ("center", "squash") or kernel not in INTERPOLATIONS["pillow"]:
        return None
    return Recipe(
        resize=math.floor(size / config["crop_pct"]),
        square=config["crop_mode"] == "squash",
        interpolation=kernel,
        size=size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _crop_with(transform: Callable[[Any], Tensor], data: bytes) -> Crop:
    with bad_image_errors():
        pixels: Crop = transform(open_rgb(data)).permute(1, 2, 0).numpy()
    return pixels
