"""Progress events of a run, and the progress bar that shows them on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Event(NamedTuple):
    """A progress event of an evaluation.

    Attributes:
        stage: the current stage, such as ``evaluating``; empty for a message only.
        done, total: images done in this stage, and images in all.
        correct: images that the last form has predicted correctly so far; None if unknown.
        message: one line for the user; empty if there is none.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    correct: int | None = None
    message: str = ""


Observer = Callable[[Event], None]


def ignore(_: Event) -> None:
    """An observer that ignores all events."""


class ProgressBar:
    """Shows events on stderr: messages as lines, stages as tqdm bars with a running top-1.

    A quiet one shows nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self._quiet:
            return
        if event.message:
            self._close()
            print(event.message, file=sys.stderr)
        if event.stage:
            self._advance(event)

    def _advance(self, event: Event) -> None:
        if self._bar is None or event.stage != self._stage:
            from tqdm import tqdm

            self._close()
            self._bar = tqdm(
                total=event.total, desc=event.stage, unit="img", smoothing=0.05, file=sys.stderr
            )
            self._stage = event.stage
        if event.correct is not None and event.done:
            top1 = 100 * event.correct / event.done
            self._bar.set_postfix_str(f"top-1 {top1:.2f}", refresh=False)
        self._bar.update(event.done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
