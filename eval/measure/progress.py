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
        self._images = 0
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
        """Count a batch: its images, and how many of them were right where that is known."""
        self._images += images
        if correct is not None:
            self._correct += correct
            top1 = 100 * self._correct / self._images
            self._bar.set_postfix_str(f"top-1 {top1:.2f}", refresh=False)
        self._bar.update(images)
