"""``eval.imagenet`` that stops after its first batch, and waits to be killed.

python tests/paused_run.py [options of eval.imagenet]
"""

from __future__ import annotations

import sys
import threading

from eval import imagenet
from eval.measure.journal import Journal, Records


def append_and_wait(journal: Journal, records: Records) -> None:
    """Keep the records of a batch; then nothing more happens."""
    append(journal, records)
    threading.Event().wait()


append = Journal.append
Journal.append = append_and_wait  # type: ignore[method-assign]
sys.exit(imagenet.main(sys.argv[1:]))
