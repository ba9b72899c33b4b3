"""A finished evaluation: what was evaluated and how, what was measured, and what follows."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.errors import EvalError
from eval.images.labelset import LabelScore
from eval.judge.verdict import Judgement, Verdict
from eval.models import Subject

if TYPE_CHECKING:
    import pandas as pd

    from eval.judge.gate import Comparison
    from eval.measure.engine import Measurement
    from eval.measure.latency import LatencyRow

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "pandas")


@dataclass(frozen=True)
class Setup:
    """How the logits were computed; None where unknown, as on another device.

    Attributes:
        backend: what computed them.
        device: where.
        precision: in what.
        batch_size: images in a batch.
        workers: threads of a process.
        processes: of the run.
        settings: switches that results may depend on.
    """

    backend: str
    device: str
    precision: str
    batch_size: int | None = None
    workers: int | None = None
    processes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


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


class LabelResult(NamedTuple):
    """The accuracy of one form by another set of labels, such as ReaL."""

    form: str
    score: LabelScore


@dataclass(frozen=True)
class Evaluation:
    """The result of `eval.evaluate`.

    Attributes:
        subject: what was evaluated.
        data: where the images were.
        setup: how it was computed.
        provenance: when, where and by what code.
        measured: the predictions.
        judgement: what they say about the reported accuracy.
        by_other_labels: accuracies by other sets of labels, if requested.
        latency: the time per image, if requested.
        comparisons: with the baseline, if there is one.
        problems: failures after the judgement: of the comparison, the history or the model card.
    """

    subject: Subject
    data: str
    setup: Setup
    provenance: Provenance
    measured: Measurement
    judgement: Judgement
    by_other_labels: tuple[LabelResult, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    problems: tuple[EvalError, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the whole run; a `str`, such as ``"PASS"``."""
        return self.judgement.verdict

    @property
    def exit_code(self) -> int:
        """The command's exit code: the verdict's, or else that of a later failure."""
        follow_up = [1] if any(row.regressed for row in self.comparisons) else []
        follow_up += [problem.exit_code for problem in self.problems]
        return self.judgement.exit_code or max(follow_up, default=0)

    @property
    def summary(self) -> pd.DataFrame:
        """The rows of ``summary.csv``: one per form."""
        from eval.results.schema import summary_table

        return summary_table(self)

    @property
    def predictions(self) -> pd.DataFrame:
        """The rows of ``predictions.csv``: one per image."""
        from eval.results.schema import predictions_table

        return predictions_table(self)

    @property
    def per_class(self) -> pd.DataFrame:
        """The rows of ``per_class.csv``: one per class."""
        from eval.results.schema import per_class_table

        return per_class_table(self)

    def save(self, folder: Path | str) -> None:
        """Write all reports into a folder, ``summary.csv`` last.

        Raises:
            UsageError: the folder cannot be written to.
        """
        from eval.results.write import write_reports

        write_reports(Path(folder), self)


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
