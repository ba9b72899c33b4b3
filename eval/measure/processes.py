"""One run over several processes, started by ``torchrun``; a plain run is a group of one.

The processes share nothing while they measure. Each does every n-th batch; at the end every one
receives the records of all, and the first one reports.
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

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in each of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def is_first_process() -> bool:
    """Whether this process is the one that reports (torchrun sets ``RANK``)."""
    return os.environ.get("RANK", "0") == "0"


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
