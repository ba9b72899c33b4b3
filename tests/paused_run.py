"""``eval.imagenet`` that stops once its first batch is in the journal, and waits to be killed.

python tests/paused_run.py FOLDER [options of eval.imagenet]

Each process that waits leaves a file in FOLDER.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from eval import imagenet
from eval.measure.journal import Journal, Records


def append_and_wait(journal: Journal, records: Records) -> None:
    """Keep the records of a batch; then nothing more happens."""
    append(journal, records)
    (WAITING / str(os.getpid())).touch()
    threading.Event().wait()


WAITING = Path(sys.argv[1])
append = Journal.append
Journal.append = append_and_wait  # type: ignore[method-assign]
sys.exit(imagenet.main(sys.argv[2:]))
