"""When, by what code and on what machine a result was made."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.errors import UsageError
from eval.snapshot import changed
from eval.snapshot import code_sha256 as code_sha256

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "pandas")


@dataclass(frozen=True)
class Provenance:
    """When, by what code and where an evaluation was made.

    Attributes:
        run_id: name of the run, from the subject and the time.
        started_at: UTC.
        command: the command line, or the call.
        request: all options.
        versions: of Python and the libraries that figures may depend on.
        code_sha256: of this project's own code.
        git_commit: of the checkout, with ``+`` if it was modified; "" outside of one.
        machine: operating system and processor.
        identity: what the run was (`eval.measure.identity`); empty if it measured nothing here.
    """

    run_id: str
    started_at: datetime
    command: str
    request: Mapping[str, Any]
    versions: Mapping[str, str]
    code_sha256: str
    git_commit: str
    machine: str
    identity: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, started: datetime, command: str, request: Mapping[str, Any]
    ) -> Provenance:
        """That of a run of this process."""
        return cls(
            run_id=f"{name}-{started:%Y%m%dT%H%M%SZ}",
            started_at=started,
            command=command,
            request=request,
            versions=versions(),
            code_sha256=code_sha256(),
            git_commit=git_commit(),
            machine=f"{platform.platform()}, {processor()}",
        )


def versions(runtime: Iterable[str] = ()) -> dict[str, str]:
    """Versions of what the results may depend on; empty if a package is not installed.

    Args:
        runtime: the Python modules of the runtime that computes; none for torch.
    """
    found = {"python": platform.python_version()}
    for package in ("pplcnet-eval", *PACKAGES, *_packages_of(runtime)):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def _packages_of(modules: Iterable[str]) -> list[str]:
    """The packages that provide these modules: several provide ``onnxruntime``."""
    modules = list(modules)
    if not modules:
        return []
    providers = _providers()
    return sorted({name for module in modules for name in providers.get(module, [module])})


@functools.cache
def _providers() -> Mapping[str, list[str]]:
    """The packages that provide each module, read from all that are installed."""
    return importlib.metadata.packages_distributions()


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_code() -> None:
    """Check that the code of this process is the one that `code_sha256` is of."""
    if found := changed():
        raise UsageError(
            f"This program's own files changed while it ran: {', '.join(found[:3])}"
            f"{f' and {len(found) - 3} more' if len(found) > 3 else ''}.\n"
            "Start it again, so that one version of the code does it all."
        )


@functools.cache
def git_commit() -> str:
    """Commit of the checkout that this code runs from, with ``+`` if it was modified; else "".

    That of the first call: what is imported does not change with the checkout.
    """
    # GIT_DIR and its like would name another repository: git's hooks set them.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""
    git = ["git", "-C", str(checkout)]
    try:
        head, status = (
            subprocess.run(
                [*git, *words], capture_output=True, text=True, check=True, env=environment
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # no git here, or a checkout without commits
    return head.strip() + ("+" if status.strip() else "")
