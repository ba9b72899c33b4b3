"""PP-LCNetV2, from a checkpoint in Paddle's, timm's or this package's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import ModelError
from eval.models import RequestedImages, Source, Subject, choose_preprocess, identify, published_of
from eval.progress import Event, Observer
from eval.request import FORMS, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eval.images.preprocess import Preprocess
    from pplcnet import PPLCNetV2


class VariantSource(RequestedImages):
    """A variant from a configuration file, and its checkpoint."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        assert request.published is not None
        self.published = request.published
        self.name = self.published.name

    def own_preprocess(self) -> Preprocess:
        """See `eval.models.Source.own_preprocess`."""
        from eval.images.preprocess import PREPROCESS

        return PREPROCESS["torchvision"]

    def load(self, classes: int, observer: Observer) -> Subject:
        """Read the checkpoint; see `eval.models.Source.load`."""
        return load_network(self, self._checkpoint(observer), classes)

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
    """Load a PP-LCNetV2 from a checkpoint.

    Args:
        source: the source of the model.
        path: the checkpoint.
        classes: number of classes, which is the number of logits.
        caution: see `Subject`.

    Raises:
        ModelError: the checkpoint is missing, damaged, refused, or belongs to another model.
    """
    from eval.models.stored import files_of, in_what
    from pplcnet import count_macs, count_parameters

    paths = files_of(path)
    # If a file is missing, the reader reports the problem.
    files = identify(paths) if all(each.is_file() for each in paths) else ()
    wanted = tuple(source.request.forms or ())
    request = source.request
    forms, layout, stored = load_forms(
        source.published.model, path, wanted, classes, request.weights_entry or ""
    )
    subject = Subject(
        name=source.name,
        title=f"PP-LCNetV2 {source.published.model}",
        weights=str(path),
        layout=layout,
        files=files,
        forms=forms,
        preprocess=choose_preprocess(source),
        published=published_of(source),
        params={form: count_parameters(model) for form, model in forms.items()},
        macs={form: count_macs(model) for form, model in forms.items()},
        precision=in_what(request.precision, stored),
        caution=caution,
    )
    subject.check_unchanged()  # the hash must be that of the bytes that were read
    return subject


def load_forms(
    model_name: str, path: Path, wanted: tuple[str, ...], classes: int, entry: str = ""
) -> tuple[Mapping[str, PPLCNetV2], str, str]:
    """Load the requested forms of a PP-LCNetV2.

    Args:
        model_name: a key of `pplcnet.VARIANTS`.
        path: the checkpoint.
        wanted: the names of the forms; if empty, all of them, or the one that an inference model
            was exported in.
        classes: number of classes, which is the number of logits.
        entry: see `pplcnet.read_weights`.

    Returns:
        The forms, in evaluation mode, the layout of the checkpoint in words, and the precision that
        its weights are stored in.

    Raises:
        ModelError: the checkpoint is missing, damaged, refused, or belongs to another model.
    """
    import pplcnet
    from eval.models.stored import stored_precision
    from pplcnet._paddle_graph import find_graph

    try:
        weights = pplcnet.read_weights(path, entry)
        layout = "; ".join(filter(None, [f"{weights.layout} layout", weights.note]))
        if find_graph(path):
            layout = "Paddle's inference model; softmax, if it ends in it, is left out"
            if weights.reparameterized:
                wanted = wanted or ("reparameterized",)
        wanted = wanted or FORMS
        model = pplcnet.create_model(model_name, num_classes=classes)
        if weights.reparameterized and wanted == ("reparameterized",):
            model = pplcnet.reparameterize(model)
        pplcnet.load_weights(model, weights)
    except pplcnet.WeightsError as error:
        raise ModelError(str(error)) from error
    model.eval()
    make = {"unfused": lambda: model, "reparameterized": lambda: pplcnet.reparameterize(model)}
    forms = {form: make[form]() for form in wanted}
    return forms, layout, stored_precision(weights.tensors.values(), weights.stored)


def open_source(request: Request) -> VariantSource:
    """See `eval.models.open_source`."""
    return VariantSource(request)
