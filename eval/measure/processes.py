"""One run over several processes, started by ``torchrun``; a plain run is a group of one.

The processes share nothing while they measure. Each does every n-th batch; at the end the first
one receives the records of all and reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process among those of the run."""

    number: int = 0
    count: int = 1
    local_number: int = 0  # on this machine: which GPU is its own

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.number == 0

    def agree(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the first process; an empty list in the others."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the processes that torchrun started, if it did (it sets ``WORLD_SIZE``)."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Group()
        return
    import torch
    import torch.distributed as dist

    # A process may be waiting at the end for one with larger images; torchrun ends the group if
    # any of them dies.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1)
    )
    try:
        yield Group(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
