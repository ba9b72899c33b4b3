"""PP-LCNetV2, from a checkpoint in Paddle's, timm's or this package's layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.backends import BACKENDS
from eval.backends.formats import in_original, private_copy
from eval.errors import ModelError
from eval.models import (
    RequestedImages,
    Source,
    Subject,
    choose_preprocess,
    identify,
    identify_copy,
    published_of,
)
from eval.progress import Event, Observer
from eval.recipe import NAMED, OWN, Recipe
from eval.recipe_files import recipe_of
from eval.request import FORMS, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eval.images.preprocess import Preprocess
    from pplcnet import PPLCNetV2


RECIPES = ("inference.yml", "inference_cls.yaml")  # of PaddleX and PaddleClas


class VariantSource(RequestedImages):
    """A variant from a configuration file, and its checkpoint."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        assert request.published is not None
        self.published = request.published
        self.name = self.published.name

    def own_preprocess(self) -> Preprocess:
        """That of the file beside an inference model, unless another is asked for."""
        from eval.images.preprocess import PREPROCESS, Preprocess

        recipe = self._recipe_beside
        return PREPROCESS["torchvision"] if recipe is None else Preprocess.of(recipe)

    @cached_property
    def _recipe_beside(self) -> Recipe | None:
        """What `_recipe_file` says."""
        path = self._recipe_file
        return recipe_of(path, where="The model's own recipe") if path else None

    @cached_property
    def _recipe_file(self) -> Path | None:
        """The file beside an inference model that is used, if there is one."""
        from pplcnet._paddle_graph import find_graph

        if str(self.request.preprocess or OWN).partition(",")[0] != OWN:
            return None
        graph = find_graph(Path(self.request.weights))
        beside = [graph.with_name(name) for name in RECIPES] if graph else []
        return next((path for path in beside if path.is_file()), None)

    def load(self, classes: int, observer: Observer) -> Subject:
        """Read the checkpoint; see `eval.models.Source.load`."""
        subject = load_network(self, self._checkpoint(observer), classes)
        recipe = self._recipe_beside
        if recipe is None:
            return subject
        differs = "" if recipe == NAMED["paddle"] else ", unlike the training evaluation (paddle)"
        said = f"images prepared as {self._recipe_file} says: {recipe.text}{differs}"
        return replace(subject, layout=f"{subject.layout}; {said}")

    def _checkpoint(self, observer: Observer) -> Path:
        if self.request.weights != "auto":
            return Path(self.request.weights)
        observer(Event(message=f"{self.name}: looking for the released weights"))
        from pplcnet import WeightsError, fetch_weights

        try:
            return fetch_weights(self.name, progress=False)
        except WeightsError as error:
            raise ModelError(str(error)) from error


def load_network(source: Source, path: Path, classes: int, caution: str = "") -> Subject:
    """Load a PP-LCNetV2 from a checkpoint."""
    from eval.models.stored import files_of, in_what
    from pplcnet import count_macs, count_parameters
    from pplcnet._paddle_graph import find_graph

    paths = files_of(path)
    # If a file is missing, the reader reports the problem.
    files = identify(paths) if all(each.is_file() for each in paths) else ()
    request = source.request
    wanted = tuple(request.forms or ())
    graph = find_graph(path)
    backend = BACKENDS[request.backend or source.backend]
    # What a runtime reads itself is a copy that our own reader has accepted.
    copy = private_copy(graph) if graph and files and graph.suffix in backend.suffixes else None
    if copy:
        files = identify_copy(copy)
    loaded = load_forms(
        source.published.model, copy or path, wanted, classes, request.weights_entry or ""
    )
    layout, forms = loaded.layout, dict[str, Any](loaded.forms)
    if copy and loaded.exported in forms and loaded.stored == "fp32":
        forms[loaded.exported] = copy
        layout = f"Paddle's inference model, read by {backend.title} itself"
    subject = Subject(
        name=source.name,
        title=f"PP-LCNetV2 {source.published.model}",
        weights=str(path),
        layout=layout,
        files=files,
        forms=forms,
        preprocess=choose_preprocess(source),
        published=published_of(source),
        params={form: count_parameters(model) for form, model in loaded.forms.items()},
        macs={form: count_macs(model) for form, model in loaded.forms.items()},
        precision=in_what(request.precision, loaded.stored),
        caution=caution,
    )
    subject.check_unchanged()  # the hash must be that of the bytes that were read
    return subject


class Loaded(NamedTuple):
    """A checkpoint as the forms that were asked for.

    Attributes:
        forms: in evaluation mode.
        layout: of the checkpoint, in words.
        stored: the precision that its weights are stored in.
        exported: the form that an inference model was exported in; "" for other checkpoints.
    """

    forms: Mapping[str, PPLCNetV2]
    layout: str
    stored: str
    exported: str = ""


def load_forms(
    model_name: str, path: Path, wanted: tuple[str, ...], classes: int, entry: str = ""
) -> Loaded:
    """Load the requested forms of a PP-LCNetV2.

    Args:
        model_name: a key of `pplcnet.VARIANTS`.
        path: the checkpoint.
        wanted: the names of the forms; if empty, all of them, or the one that an inference model
            was exported in.
        classes: number of classes, which is the number of logits.
        entry: see `pplcnet.read_weights`.
    """
    import pplcnet
    from eval.models.stored import stored_precision
    from pplcnet._paddle_graph import find_graph

    graph = find_graph(path)
    try:
        weights = pplcnet.read_weights(path, entry)
        layout = "; ".join(filter(None, [f"{weights.layout} layout", weights.note]))
        if graph:
            layout = "Paddle's inference model; softmax, if it ends in it, is left out"
            if weights.reparameterized:
                wanted = wanted or ("reparameterized",)
        wanted = wanted or FORMS
        model = pplcnet.create_model(model_name, num_classes=classes)
        if weights.reparameterized and wanted == ("reparameterized",):
            model = pplcnet.reparameterize(model)
        pplcnet.load_weights(model, weights)
    except pplcnet.WeightsError as error:
        raise ModelError(in_original(str(error), path)) from error
    model.eval()
    make = {"unfused": lambda: model, "reparameterized": lambda: pplcnet.reparameterize(model)}
    forms = {form: make[form]() for form in wanted}
    exported = "reparameterized" if weights.reparameterized else "unfused"
    stored = stored_precision(weights.tensors.values(), weights.stored)
    return Loaded(forms, layout, stored, exported if graph else "")


def open_source(request: Request) -> VariantSource:
    """See `eval.models.open_source`."""
    return VariantSource(request)
