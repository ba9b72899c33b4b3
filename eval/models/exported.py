"""Exported files as subjects: ``.onnx``, ``.xml``, whoever made them.

A file is a form of its own, ``exported``: whether batch normalisation was folded before the export
or by the exporter cannot be told from outside.
"""

from __future__ import annotations

from pathlib import Path

from eval.backends.exported import FORM, RUNTIMES, companions, precision_of
from eval.errors import UsageError
from eval.measure.progress import Observer
from eval.models import RequestedImages, Subject, identify
from eval.request import Request


class ExportedSource(RequestedImages):
    """An exported file; its runtime reads it."""

    preprocess = "torchvision"

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        path = Path(request.weights)
        runtimes = RUNTIMES[path.suffix.lower()]
        if request.model:
            raise UsageError("--model with an exported file: leave --model out, the file is it.")
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
        assert request.published is not None
        self.published = request.published
        self.name = self.published.name
        self.backend = runtimes[0]

    def load(self, classes: int, observer: Observer) -> Subject:  # noqa: ARG002
        """See `eval.models.Source.load`; the runtime itself checks the classes."""
        from eval.images.preprocess import PREPROCESS

        path = Path(self.request.weights)
        precision = precision_of(path)
        return Subject(
            name=self.name,
            title=f"{path.name}, as {self.name}",
            weights=str(path),
            layout=f"exported {path.suffix.lower()}",
            files=identify([path, *companions(path)]),
            forms={FORM: path},
            preprocess=PREPROCESS[self.request.preprocess or self.preprocess],
            published=self.published,
            params={FORM: None},
            macs={FORM: None},
            precision=precision,
        )


def open_source(request: Request) -> ExportedSource:
    """See `eval.models.open_source`."""
    return ExportedSource(request)
