"""A run over several processes, started by ``torchrun``; a plain run is a group of one process.

The processes share nothing while they measure. Each measures every n-th batch. At the end, all of
them receive all records, and the first one writes the reports.
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
    """The processes of the run, as seen by one of them."""

    number: int = 0  # of this process
    count: int = 1  # of processes
    local_number: int = 0  # of this process on its machine; selects its GPU

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.number == 0

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Collect the values of all processes, in every process, in order of their numbers."""
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
    """Join the process group if the run was started by torchrun, which sets ``WORLD_SIZE``."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Group()
        return
    import torch
    import torch.distributed as dist

    # The timeout is long because a process may have to wait for one with larger images; torchrun
    # ends all of them if one dies.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1)
    )
    try:
        yield Group(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
