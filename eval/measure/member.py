"""What the processes of a run beside the first one do; see `eval.measure.crew`.

Every thread answers on a connection of its own; the main thread takes what concerns all of them,
and ends the process when the first one is gone.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from eval.backends import predictor_for
from eval.images.cache import CropCache
from eval.measure.batch import BatchEvaluator, ShrinkOnOutOfMemory
from eval.measure.crew import Answer, Evaluator, Failure, Job, facts, read_task
from eval.measure.settings import (
    check_settings,
    enter_worker,
    exact_settings,
    give_back_freed_memory,
    keep_freed_memory,
)
from eval.progress import Event
from eval.provenance import check_code


def main() -> None:
    """Serve the process that started this one, until it is gone or ends this one."""
    store, control, *seats = map(int, sys.argv[2:])
    member = _Member(store, Connection(control))
    for seat in seats:
        threading.Thread(target=member.answer, args=(Connection(seat),), daemon=True).start()
    with suppress(EOFError, OSError):
        member.serve()
    os._exit(0)


class _Crops(CropCache):
    """A cache, into whose index the first process enters what this one has cropped."""

    made = threading.local()

    def enter(self, index: int, record: bytes) -> None:
        """Keep it for the answer of this thread."""
        self.made.records.append((index, record))


class _Member:
    """The model of this process, and what it measures.

    Args:
        store: file descriptor of what `eval.measure.crew.read_task` reads.
        control: to the first process.
    """

    def __init__(self, store: int, control: Connection) -> None:
        self._store, self._control = store, control
        self._asked = threading.local()  # the connection that a thread answers on
        self._evaluate: Evaluator | None = None
        self._cache: CropCache | None = None
        self._held, self._settings = ExitStack(), ExitStack()  # of the images, of the process
        self._predictor: Any = None

    def serve(self) -> None:
        """Do what the first process asks for, one thing after another."""
        while True:
            asked = pickle.loads(self._control.recv_bytes())  # noqa: S301  # of our own process
            try:
                answer = self._do(asked)
            except Exception as error:
                answer = Failure.of(error)
            self._control.send(answer)

    def _do(self, asked: Any) -> Any:
        match asked:
            case Job():
                self._held.close()
                self._cache = None
                if asked.cache is not None:
                    cache = _Crops(asked.cache, asked.valset, asked.plan.preprocess)
                    self._cache = self._held.enter_context(cache)
                self._evaluate = BatchEvaluator(
                    asked.valset, self._predictor, asked.plan, self._cache, asked.kinds
                )
                return None
            case ("task", length, keeps_memory):
                if keeps_memory:
                    keep_freed_memory()
                self._settings.enter_context(exact_settings())
                task = read_task(self._store, length)
                self._predictor = ShrinkOnOutOfMemory(predictor_for(task), self._note)
                give_back_freed_memory()
                return facts(task, self._predictor.settings)
            case ("check",):
                check_settings()
                check_code()
                return None
        raise ValueError(asked)

    def answer(self, connection: Connection) -> None:
        """Evaluate batches, in a thread of its own."""
        enter_worker()
        self._asked.connection = connection
        while True:
            try:
                indices = np.frombuffer(connection.recv_bytes(), np.int64)
            except (EOFError, OSError):
                return
            kept = _Crops.made.records = []
            try:
                assert self._evaluate is not None
                records = self._evaluate(indices).tobytes()
                found: Any = Answer(records, self._cache.used if self._cache else 0, kept)
            except Exception as error:
                found = Failure.of(error)
            connection.send_bytes(pickle.dumps(found))

    def _note(self, message: str) -> None:
        getattr(self._asked, "connection", self._control).send(Event(message=message))
