"""Result folders as eval.imagenet writes them, made by hand, without eval.results.folder."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

IMAGES = 100
_COLUMNS = (  # the contract's
    "run_id,started_at,variant,form,backend,device,precision,preprocess,images,images_expected,"
    "bad_images,top1_correct,top5_correct,top1,top5,top1_ci_low,top1_ci_high,reference_top1,"
    "reference_top5,reference_source,delta_top1,delta_top5,tolerance,verdict,nll,"
    "max_abs_logit_diff,prediction_flips,images_per_second,seconds,params,macs,weights,"
    "weights_sha256,dataset_sha256,torch,torchvision,timm,git_commit,command"
)
HEADER = next(csv.reader([_COLUMNS]))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ranks(right: int, near: int = 10, images: int = IMAGES) -> np.ndarray:
    """The first `right` images are right, the `near` after them among the best five."""
    rank = np.full(images, 7)
    rank[: right + near] = 2
    rank[:right] = 0
    return rank


def summary_row(rank: np.ndarray, form: str = "unfused", **cells: object) -> dict[str, object]:
    """A row of summary.csv; what is not given is as in an ordinary run."""
    images, top1, top5 = len(rank), int((rank == 0).sum()), int(((rank >= 0) & (rank < 5)).sum())
    row: dict[str, object] = dict.fromkeys(HEADER, "")
    row |= {
        "run_id": "base-1", "started_at": "2026-01-02T03:04:05+00:00", "variant": "base",
        "form": form, "backend": "torch", "device": "cpu", "precision": "fp32",
        "preprocess": "torchvision", "images": images, "images_expected": 50000, "bad_images": 0,
        "top1_correct": top1, "top5_correct": top5, "top1": 100 * top1 / images,
        "top5": 100 * top5 / images, "verdict": "PARTIAL", "reference_top1": 77.04,
        "weights_sha256": sha256("weights"), "dataset_sha256": sha256("images"),
        "images_per_second": 15.86, "torch": "2.15.0",
        "command": 'python -m eval.imagenet --data "a, b"',
    }  # fmt: skip
    return row | cells


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def labels_of(images: int = IMAGES) -> np.ndarray:
    """Two images a class."""
    return np.arange(images) // 2


def image_names(images: int = IMAGES) -> list[str]:
    return [f"n00000000/photo_{i:05d}.JPEG" for i in range(images)]


def write_predictions(
    path: Path,
    rank_of_form: Mapping[str, np.ndarray],
    *,
    paths: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    wrong: int = 700,
    order: Sequence[int] | None = None,
) -> Path:
    """predictions.csv; every wrong answer is the class `wrong`."""
    images = len(next(iter(rank_of_form.values())))
    labels = labels_of(images) if labels is None else labels
    paths = image_names(images) if paths is None else paths
    header = ["index", "path", "label"]
    for form in rank_of_form:
        header += [f"{form}_rank", f"{form}_top1", f"{form}_prob1"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for i in range(images) if order is None else order:
            row = [i, paths[i], labels[i]]
            for rank in rank_of_form.values():
                top1 = labels[i] if rank[i] == 0 else wrong if rank[i] > 0 else -1
                row += [rank[i], top1, 0.25]
            writer.writerow(["" if cell == -1 else cell for cell in row])
    return path


def write_result(
    folder: Path,
    rank: np.ndarray | Mapping[str, np.ndarray],
    *,
    predictions: bool = True,
    paths: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    wrong: int = 700,
    order: Sequence[int] | None = None,
    **cells: object,
) -> Path:
    """A result folder of one form, or of those given; `cells` go into each row of the summary."""
    rank_of_form = rank if isinstance(rank, Mapping) else {"unfused": rank}
    rows = [summary_row(rank, form, **cells) for form, rank in rank_of_form.items()]
    write_rows(folder / "summary.csv", rows)
    if predictions:
        write_predictions(
            folder / "predictions.csv",
            rank_of_form,
            paths=paths,
            labels=labels,
            wrong=wrong,
            order=order,
        )
    return folder


# A whole set of IMAGES images with a reference of 60 and 70 %, exactly what ranks(60) gives.
WHOLE: dict[str, object] = {
    "images_expected": IMAGES,
    "reference_top1": "60.0",
    "reference_top5": "70.0",
    "tolerance": 2,
    "verdict": "PASS",
}
