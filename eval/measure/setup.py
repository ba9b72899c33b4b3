"""What a measurement needs: the images of a request, and how the logits are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eval.backends import Task
from eval.backends.device import choose_device, int8_note
from eval.images.classes import read_classes
from eval.images.sets import STATED, ImageSet
from eval.images.valset import ValSet, open_valset
from eval.measure.cores import choose_batch_size, choose_processes, choose_workers
from eval.models import Source, Subject
from eval.processes import Group
from eval.progress import Observer, ignore
from eval.request import Request

_ALONE = Group()


@dataclass(frozen=True)
class Computation:
    """How the logits are computed; None where unknown, as on another device.

    Attributes:
        workers: threads of a process.
        processes: of the run, on this machine and others.
        processes_here: those that this one has started, and itself.
        settings: switches that results may depend on.
    """

    backend: str
    device: str
    precision: str
    batch_size: int | None = None
    workers: int | None = None
    processes: int | None = None
    processes_here: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


def open_images(
    source: Source, folder: Path, group: Group = _ALONE, progress: Observer = ignore
) -> ValSet:
    """All images of a request, with their labels.

    Args:
        source: whose request names them, or which makes them itself.
        folder: where a source may make them; the same for all processes.
        group: the processes of the run.
        progress: called with every `eval.progress.Event`.
    """
    root = source.images(folder, progress) if group.is_first else None
    group.wait()
    root = root or source.images(folder, progress)  # made by the first
    return open_data(source.request, root, source.image_set)


def open_data(request: Request, root: Path, image_set: ImageSet | None = None) -> ValSet:
    """A validation set, with the classes and labels that a request names."""
    classes = read_classes(Path(request.classes)) if request.classes else None
    labels = Path(request.labels) if request.labels else None
    stated = STATED[request.image_set] if request.image_set else image_set
    return open_valset(root, labels, classes, stated, request.folders)


def choose_computation(
    source: Source,
    subject: Subject,
    images: int,
    settings: Mapping[str, Any],
    group: Group = _ALONE,
) -> Computation:
    """How to compute: as requested, else to suit the model and the machine."""
    request = source.request
    device = choose_device(request.device, group.local_number)
    if subject.precision == "int8":
        settings = {**settings, "int8": int8_note()}
    backend = request.backend or source.backend
    processes = request.processes
    if not processes:
        processes = 1 if request.workers else choose_processes(images, device, backend)
    return Computation(
        backend=backend,
        device=str(device),
        precision=subject.precision or request.precision,
        batch_size=min(request.batch_size or choose_batch_size(device), images),
        workers=request.workers or choose_workers(processes),
        processes=sum(group.gather(processes)),
        processes_here=processes,
        settings=settings,
    )


def outputs_of(request: Request, classes: int) -> int:
    """How many outputs a model must have for a number of classes."""
    return classes + request.background_first


def task_of(request: Request, subject: Subject, computation: Computation, classes: int) -> Task:
    """What the engine is made for: all forms of a subject, computed so.

    Args:
        request: says which precision was asked for; files, and stored weights, have their own.
        subject: the model.
        computation: as `choose_computation` gives it.
        classes: of the images.
    """
    assert computation.batch_size is not None
    assert computation.workers is not None
    return Task(
        computation.backend,
        subject.forms,
        subject.preprocess,
        torch.device(computation.device),
        request.precision,
        computation.batch_size,
        computation.workers,
        outputs_of(request, classes),
        output=request.output_name,
        background_first=request.background_first,
    )
