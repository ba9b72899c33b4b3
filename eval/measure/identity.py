"""What a run is: everything that its records depend on, as one value.

The journal keeps it, so that a run is continued only as it began; the processes of a run exchange
it, so that all of them measure the same; `run.json` shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from eval.backends import BACKENDS
from eval.errors import DataError, EvalError, ModelError, UsageError
from eval.images.preprocess import Preprocess
from eval.images.valset import ValSet, image_list_sha256
from eval.measure.settings import freed_memory_kept
from eval.measure.setup import Computation
from eval.models import Subject
from eval.processes import Group, difference
from eval.provenance import code_sha256, versions
from eval.request import Request

Identity = dict[str, Any]  # values that JSON can hold, by name

# What the error is if these differ between processes; for all others it is a usage error.
_ERRORS: Mapping[str, type[EvalError]] = {
    "subject": ModelError,
    "layout": ModelError,
    "files": ModelError,
    "images": DataError,
    "image_list_sha256": DataError,
    "image_set": DataError,
    "folders": DataError,
    "classes": DataError,
    "classes_sha256": DataError,
}


def identity_of(request: Request, subject: Subject, valset: ValSet, setup: Computation) -> Identity:
    """The identity of a run."""
    identity = {
        "subject": subject.name,
        "layout": subject.layout,
        "files": {file.path.name: file.sha256 for file in subject.files},
        "forms": list(subject.forms),
        "preprocess": subject.preprocess.name,
        "preprocess_description": subject.preprocess.description,
        "preprocess_sha256": _pixels_sha256(subject.preprocess),
        "output": request.output_name,
        "background_first": request.background_first,
        "backend": setup.backend,
        "device": setup.device.partition(":")[0],
        "precision": setup.precision,
        "settings": {k: v for k, v in setup.settings.items() if k not in freed_memory_kept()},
        "on_bad_image": request.on_bad_image,
        "order": "shuffled" if request.stop_early else "as it is",
        "limit": request.limit,
        "images": len(valset.samples),
        "image_list_sha256": image_list_sha256(valset),
        "image_set": valset.image_set.title,
        "folders": request.folders,
        "classes": len(valset.classes),
        "classes_sha256": _sha256([list(row) for row in valset.classes.rows]),
        "code_sha256": code_sha256(),
        "versions": versions(BACKENDS[setup.backend].needs),
    }
    found: Identity = json.loads(json.dumps(identity))
    return found


def agree(group: Group, identity: Identity, subject: Subject, setup: Computation) -> None:
    """Check that all processes of a run are about to measure the same.

    Args:
        group: the processes.
        identity: of the run, as this process sees it.
        subject: the model; its reported figures decide when a run ends early.
        setup: its batch size says what each process measures, its settings what the backend chose.

    Raises:
        ModelError: the weights are not the same.
        DataError: the images or their labels are not.
        UsageError: anything else is not.
    """
    mine = {
        **identity,
        "settings": dict(setup.settings),
        "batch_size": setup.batch_size,
        "reported": _sha256(asdict(subject.published)),
    }
    first, *others = group.gather(json.loads(json.dumps(mine)))
    for number, other in enumerate(others, 1):
        different = [key for key in first if other[key] != first[key]]
        if different:
            # The cause is named before its consequences.
            kind = next((_ERRORS[key] for key in _ERRORS if key in different), UsageError)
            listed = "; ".join(difference(key, first[key], other[key]) for key in different)
            raise kind(
                f"Process {number} does not evaluate the same as process 0: {listed}.\n"
                "Start all processes with the same command, files and installation."
            )


def _pixels_sha256(preprocess: Preprocess) -> str:
    """SHA-256 of the size and the normalization, hexadecimal."""
    table = hashlib.sha256(preprocess.table.tobytes()).hexdigest()
    return _sha256([preprocess.size, table])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
