"""What a run leaves behind: CSV and JSON files, written atomically, and the table on stdout."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eval.config import VariantConfig
from eval.images.classes import imagenet_classes
from eval.images.real import RealScore
from eval.judge.verdict import FormResult
from eval.measure.engine import Measurement
from eval.measure.metrics import TOP, Scores
from eval.results.files import write_atomically
from eval.results.read import SUMMARY_COLUMNS

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "pandas")


@dataclass(frozen=True)
class RunFacts:
    """Everything but the measurement that somebody needs to repeat a run."""

    run_id: str
    started_at: str  # ISO 8601, UTC
    command: str
    variant: VariantConfig
    preprocess: str
    preprocess_description: str
    backend: str
    device: str
    precision: str
    batch_size: int | None  # None where another runtime made the predictions
    workers: int | None
    processes: int | None
    weights: str
    weights_sha256: str
    weights_layout: str
    params: dict[str, int | None]  # by form
    macs: dict[str, int | None]  # by form
    data: str
    layout: str
    limit: int | None
    cache: str | None = None
    real: dict[str, RealScore] | None = None  # by form, where ReaL labels were asked for
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    git_commit: str = field(default_factory=lambda: git_commit())
    machine: str = field(default_factory=platform.platform)


def versions() -> dict[str, str]:
    """Versions of what the figures may depend on; empty where a package is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def git_commit() -> str:
    """Commit of the checkout that this code runs from, with ``+`` if it was modified; else ""."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(checkout)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # no git here, or a checkout without commits
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def write_reports(
    output: Path, facts: RunFacts, measured: Measurement, results: list[FormResult]
) -> None:
    """Write ``summary.csv``, ``predictions.csv``, ``per_class.csv`` and ``run.json``.

    ``bad_images.csv`` is written where there are any, and one that is left over is removed.

    Raises:
        UsageError: the output folder cannot be written to.
    """
    tables = {
        "predictions.csv": predictions_table(measured),
        "per_class.csv": per_class_table(measured),
        "summary.csv": summary_table(facts, measured, results),
    }
    if measured.bad:
        tables["bad_images.csv"] = bad_images_table(measured)
    for name, table in tables.items():
        precision = "%.6g" if name == "predictions.csv" else None
        write_atomically(output / name, table.to_csv(index=False, float_format=precision))
    if not measured.bad:
        (output / "bad_images.csv").unlink(missing_ok=True)
    write_atomically(output / "run.json", run_json(facts, measured, results))


def predictions_table(measured: Measurement) -> pd.DataFrame:
    """One row per image: ``index, path, label``, then rank, top 1 to 5 and their probabilities.

    What a bad image has no value for is empty.
    """
    columns: dict[str, Any] = {
        "index": range(len(measured.valset.samples)),
        "path": [sample.path for sample in measured.valset.samples],
        "label": measured.labels,
    }
    for form, scores in measured.scores.items():
        columns[f"{form}_rank"] = _empty_if_negative(scores.rank)
        columns |= {f"{form}_top{k + 1}": _empty_if_negative(scores.top[:, k]) for k in range(TOP)}
        columns |= {f"{form}_prob{k + 1}": scores.prob[:, k] for k in range(TOP)}
    return pd.DataFrame(columns)


def bad_images_table(measured: Measurement) -> pd.DataFrame:
    """One row per image that could not be decoded: ``index, path, label, reason``."""
    samples = measured.valset.samples
    rows = [
        {"index": i, "path": samples[i].path, "label": samples[i].label, "reason": reason}
        for i, reason in sorted(measured.bad.items())
    ]
    return pd.DataFrame(rows)


def _empty_if_negative(values: NDArray[np.int64]) -> pd.Series[int]:
    return pd.Series(values, dtype="Int64").mask(values < 0)


def mean_nll(scores: Scores) -> float | None:
    """Mean negative log-likelihood in nats of the images that were answered, if any were."""
    known = scores.nll[np.isfinite(scores.nll)]
    return float(known.mean()) if len(known) else None


def per_class_table(measured: Measurement) -> pd.DataFrame:
    """One row per class: its images, and how many of them each form gets right."""
    classes = imagenet_classes()
    labels = measured.labels
    columns: dict[str, Any] = {
        "synset": [row.synset for row in classes],
        "name": [row.name for row in classes],
        "images": pd.Series(labels).value_counts().reindex(range(len(classes)), fill_value=0),
    }
    for form, scores in measured.scores.items():
        for k in (1, TOP):
            columns[f"{form}_correct@{k}"] = scores.correct_per_class(labels, k, len(classes))
    return pd.DataFrame(columns)


def summary_table(
    facts: RunFacts, measured: Measurement, results: list[FormResult]
) -> pd.DataFrame:
    """One row per form, with the contract's columns."""
    two_forms = len(measured.scores) > 1
    rows = []
    for result in results:
        low, high = result.top1_interval
        row = {
            **{key: getattr(facts, key) for key in SUMMARY_COLUMNS if hasattr(facts, key)},
            **{key: getattr(result, key) for key in SUMMARY_COLUMNS if hasattr(result, key)},
            "variant": facts.variant.name,
            "bad_images": len(measured.bad),
            "top1_ci_low": low,
            "top1_ci_high": high,
            "verdict": result.verdict.value,
            "nll": mean_nll(measured.scores[result.form]),
            "max_abs_logit_diff": measured.max_logit_diff,
            "prediction_flips": len(measured.flips) if two_forms else None,
            "images_per_second": measured.images_per_second,
            "seconds": measured.seconds,
            "params": facts.params[result.form],
            "macs": facts.macs[result.form],
            "dataset_sha256": measured.dataset_sha256,
            **{key: facts.versions[key] for key in ("torch", "torchvision", "timm")},
        }
        rows.append({key: row[key] for key in SUMMARY_COLUMNS})
    return pd.DataFrame(rows, dtype=object)


def run_json(facts: RunFacts, measured: Measurement, results: list[FormResult]) -> str:
    """The whole configuration, the environment and the results."""
    forms = list(measured.scores)
    document = {
        **asdict(facts),
        "seconds": measured.seconds,
        "images_measured_now": measured.measured_now,
        "bad_images": len(measured.bad),
        "dataset_sha256": measured.dataset_sha256,
        "largest_logit": measured.largest_logit,
        "max_abs_logit_diff": measured.max_logit_diff,
        "flips": [
            {
                "path": measured.valset.samples[index].path,
                "label": measured.valset.samples[index].label,
                **{form: int(measured.scores[form].top[index, 0]) for form in forms},
            }
            for index in (measured.flips if len(forms) > 1 else [])
        ],
        "results": [
            {**asdict(result), "top1": result.top1, "top5": result.top5} for result in results
        ],
    }
    return json.dumps(document, indent=2, default=str, allow_nan=False) + "\n"


def format_results(facts: RunFacts, measured: Measurement, results: list[FormResult]) -> str:
    """The table for a person, without a trailing newline."""
    first = results[0]
    lines = []
    if facts.variant.name == "demo":
        lines.append("DEMO: synthetic images and weights; no figure here is an ImageNet accuracy")
    lines += [
        f"{facts.variant.name}: {first.images:,} images of {facts.data} ({facts.layout})",
        f"{facts.preprocess}: {facts.preprocess_description}",
        "",
        f"{'':<16} {'top-1':>8} {'correct':>8} {'top-5':>8} {'correct':>8} {'NLL':>8}",
    ]
    for result in results:
        nll = mean_nll(measured.scores[result.form])
        lines.append(
            f"{result.form:<16} {result.top1:8.3f} {result.top1_correct:8,} "
            f"{result.top5:8.3f} {result.top5_correct:8,} " + ("" if nll is None else f"{nll:8.4f}")
        )
    for form, real in (facts.real or {}).items():
        lines.append(
            f"{form:<16} {real.top1:8.3f} {real.top1_correct:8,} "
            f"{real.top5:8.3f} {real.top5_correct:8,} {'':8}   ReaL, {real.images:,} images"
        )
    if first.reference_top1 is not None:
        lines.append(
            _figures(
                "known answer" if facts.variant.name == "demo" else "reported",
                first.reference_top1,
                first.reference_top5,
            )
            + f"   {first.reference_source}"
        )
    lines += [
        _figures(other.name, other.top1, other.top5) + f"   {other.source}"
        for other in facts.variant.others_on(measured.valset.image_set)
    ]
    lines.append("")
    if len(results) > 1:
        lines.append(
            f"Both forms: largest logit difference {measured.max_logit_diff:.2g}, "
            f"{len(measured.flips)} flipped predictions"
        )
    if measured.bad:
        lines.append(f"Bad images, counted as wrong: {len(measured.bad)} (bad_images.csv)")
    low, high = first.top1_interval
    rate = measured.images_per_second
    lines.append(
        f"95 % interval of {first.form} top-1: {low:.3f} to {high:.3f}"
        + ("" if rate is None else f"; {rate:.1f} images/s")
    )
    lines += [f"{result.verdict}  {result.form}: {result.reason}" for result in results]
    if first.images >= 200 and max(result.top1 for result in results) < 1:
        lines.append("Below 1 %: are the labels in another order, or the weights of another set?")
    return "\n".join(lines)


def _figures(name: str, top1: float, top5: float | None) -> str:
    shown = "" if top5 is None else f"{top5:.3f}"
    return f"{name:<16} {top1:8.3f} {'':8} {shown:>8} {'':8} {'':8}"
