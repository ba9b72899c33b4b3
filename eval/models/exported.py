"""Exported files as subjects: ``.onnx``, ``.xml``, whoever made them.

A file is a form of its own, ``exported``: whether batch normalisation was folded before the export
or by the exporter cannot be told from outside.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.backends.exported import FORM, RUNTIMES, companions, precision_of
from eval.errors import ModelError, UsageError
from eval.measure.progress import Observer
from eval.models import RequestedImages, Subject, choose_preprocess, identify
from eval.models import open_source as open_source_of
from eval.request import Request

if TYPE_CHECKING:
    from eval.images.preprocess import Preprocess


class ExportedSource(RequestedImages):
    """An exported file of the model that the request names; its runtime reads it."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        path = Path(request.weights)
        runtimes = RUNTIMES[path.suffix.lower()]
        if request.forms:
            raise UsageError(f"--forms: {path} is one form, as it was exported. Leave it out.")
        if request.backend and request.backend not in runtimes:
            raise UsageError(
                f"--backend {request.backend} cannot run {path}: use {' or '.join(runtimes)}."
            )
        if request.precision != "fp32":
            raise UsageError(
                f"--precision {request.precision}: {path} has a precision of its own. Leave it out."
            )
        # What the file was made from says how images are prepared, and what is reported.
        self._origin = open_source_of(replace(request, weights="auto", backend=None))
        self.published = self._origin.published
        self.preprocess = self._origin.preprocess
        self.name = self._origin.name
        self.backend = runtimes[0]

    def own_preprocess(self) -> Preprocess:
        """That of the model that was exported."""
        return self._origin.own_preprocess()

    def load(self, classes: int, observer: Observer) -> Subject:  # noqa: ARG002
        """See `eval.models.Source.load`; the runtime itself checks the classes."""
        path = Path(self.request.weights)
        precision = precision_of(path)
        missing = [beside for beside in companions(path) if not beside.is_file()]
        if missing:
            raise ModelError(
                f"{path} keeps its weights in {missing[0].name}, which is not beside it.\n"
                "Copy all files of the model into one folder."
            )
        return Subject(
            name=self.name,
            title=f"{path.name}, as {self.name}",
            weights=str(path),
            layout=f"exported {path.suffix.lower()}",
            files=identify([path, *companions(path)]),
            forms={FORM: path},
            preprocess=choose_preprocess(self),
            published=self.published,
            params={FORM: None},
            macs={FORM: None},
            precision=precision,
        )


def open_source(request: Request) -> ExportedSource:
    """See `eval.models.open_source`."""
    return ExportedSource(request)
