"""Progress on stderr: images done, rate, time left, and the accuracy so far."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm


class Progress:
    """A tqdm bar over images with a running top-1.

    Args:
        total: images in all.
        quiet: show nothing.
    """

    def __init__(self, total: int, quiet: bool) -> None:
        self._bar = tqdm(total=total, unit="img", disable=quiet, smoothing=0.05)
        self._correct = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def describe(self, what: str) -> None:
        """Say what is going on, in front of the bar."""
        self._bar.set_description_str(what)

    def add(self, images: int, correct: int | None = None) -> None:
        """Count a batch: its images, and how many of them were right if that is known."""
        self._bar.update(images)
        if correct is not None:
            self._correct += correct
            self._bar.set_postfix_str(f"top-1 {100 * self._correct / self._bar.n:.2f}", False)
