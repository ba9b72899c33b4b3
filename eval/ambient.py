"""Settings of the whole process that results depend on, held while anyone needs them.

Several evaluations may run at once, in threads of one process. The first to begin finds what was
set and sets what is needed; the last to end puts back what was found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_lock = threading.RLock()


class Setting:
    """One setting of the process.

    Args:
        name: for messages and reports.
        value: what it must be; None: whatever it is, and only put back.
        read: gives its state, in the form that `write` takes.
        write: sets it.
        look: gives its present value, to compare with `value`; `read` by default. It is called
            while others compute, so it must change nothing.
    """

    def __init__(
        self,
        name: str,
        value: Any,
        read: Callable[[], Any],
        write: Callable[[Any], object],
        look: Callable[[], Any] | None = None,
    ) -> None:
        self.name, self.value = name, value
        self._read, self._write, self._look = read, write, look or read
        self._users = 0
        self._before: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it at its value."""
        with _lock:
            if self._users == 0:
                self._before = self._read()
                if self.value is not None:
                    self._write(self.value)
            self._users += 1
        try:
            yield
        finally:
            with _lock:
                self._users -= 1
                if self._users == 0:
                    self._write(self._before)

    @property
    def is_kept(self) -> bool:
        """Whether it still has its value."""
        return self.value is None or self._look() == self.value


def attribute(name: str, owner: Any, value: Any) -> Setting:
    """A setting that is an attribute of a module or an object, by the last part of its name."""
    last = name.rpartition(".")[2]
    return Setting(name, value, lambda: getattr(owner, last), lambda new: setattr(owner, last, new))


@contextmanager
def held(settings: Iterable[Setting]) -> Iterator[None]:
    """Hold several settings until the context ends."""
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting.held())
        yield
