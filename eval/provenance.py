"""When, by what code and on what machine a result was made."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


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
    """

    run_id: str
    started_at: datetime
    command: str
    request: Mapping[str, Any]
    versions: Mapping[str, str]
    code_sha256: str
    git_commit: str
    machine: str

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
            machine=platform.platform(),
        )


def versions() -> dict[str, str]:
    """Versions of what the results may depend on; empty if a package is not installed."""
    found = {"python": platform.python_version()}
    for package in ("pplcnet-eval", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


@functools.cache
def code_sha256() -> str:
    """SHA-256 of the names and contents of this project's own modules and resources."""
    digest = hashlib.sha256()
    top = Path(__file__).parents[1]
    suffixes = {".py", ".csv", ".u16", ".npz"}
    for package in ("eval", "pplcnet"):
        for path in sorted((top / package).rglob("*")):
            if path.suffix in suffixes:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(top).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def git_commit() -> str:
    """Commit of the checkout that this code runs from, with ``+`` if it was modified; else ""."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""
    git = ["git", "-C", str(checkout)]
    try:
        head, status = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # no git here, or a checkout without commits
    return head.strip() + ("+" if status.strip() else "")
