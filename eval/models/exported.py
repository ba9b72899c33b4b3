"""Exported files as subjects, whichever tool made them.

A file is a form of its own, ``exported``: it does not show whether batch normalization was folded
before the export or by the exporter. `FORMATS` is the table of the kinds of file;
`eval.backends.BACKENDS` says which runtimes run which.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.backends import BACKENDS, check_runs
from eval.backends.formats import RUNTIMES, check_file, precision_of, private_copy, side_of
from eval.errors import UsageError
from eval.models import RequestedImages, Subject, choose_preprocess, identify_copy, published_of
from eval.models import open_source as open_source_of
from eval.progress import Observer
from eval.request import Request

if TYPE_CHECKING:
    from eval.images.preprocess import Preprocess

EXPORTED = "exported"


class ExportedSource(RequestedImages):
    """An exported file of the model that the request names; its runtime reads it."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        path = Path(request.weights)
        runtimes = RUNTIMES[path.suffix.lower()]
        if request.forms:
            raise UsageError(f"--forms: {path} has only the form that was exported. Omit --forms.")
        if request.backend is not None and request.backend in BACKENDS:
            check_runs(request.backend, path)
        if request.weights_entry:
            raise UsageError(f"--weights-entry: {path} is no checkpoint. Omit --weights-entry.")
        if request.precision != "fp32":
            raise UsageError(
                f"--precision {request.precision}: {path} has its own precision. Omit --precision."
            )
        # The original model determines the preprocessing and the reported accuracy.
        plain = replace(request, weights="auto", backend=None, output_name=None)
        self._origin = open_source_of(plain)
        self.published = self._origin.published
        self.name = self._origin.name
        self.backend = runtimes[0]

    def own_preprocess(self) -> Preprocess:
        """That of the model that was exported, at the size of the file's images."""
        own = self._origin.own_preprocess()
        path = Path(self.request.weights)
        from eval.images.preprocess import Preprocess

        side = side_of(path) if path.is_file() else None
        if side is None or side == own.size:
            return own
        if own.recipe is None:
            raise UsageError(
                f"{path} takes images of {side}x{side}, {self.name} of {own.size}x{own.size}, by "
                f"{own.description}.\nName a recipe with --preprocess."
            )
        return Preprocess.of(own.recipe.at(side))

    def load(self, classes: int, observer: Observer) -> Subject:  # noqa: ARG002
        """See `eval.models.Source.load`; the runtime itself checks the classes."""
        path = Path(self.request.weights)
        check_file(path)
        copy = private_copy(path)  # that nobody else changes
        return Subject(
            name=self.name,
            title=f"{path.name}, as {self.name}",
            weights=str(path),
            layout=f"exported {path.suffix.lower()}",
            files=identify_copy(copy),
            forms={EXPORTED: copy},
            preprocess=choose_preprocess(self),
            published=published_of(self),
            params={EXPORTED: None},
            macs={EXPORTED: None},
            precision=precision_of(copy),
        )


def open_source(request: Request) -> ExportedSource:
    """See `eval.models.open_source`."""
    return ExportedSource(request)
