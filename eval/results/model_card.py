"""A result for the Hugging Face Hub: a model card's ``model-index``, and ``.eval_results``.

Their specifications are ``modelcard.md`` and ``eval_results.yaml`` of huggingface/hub-docs. The
first is metadata of a model's ``README.md``. The second is newer: files of the model's repository
that put a figure on the leaderboard of a benchmark data set.

Only a complete run that was compared with a reference belongs there: a figure on the Hub is read
as the model's accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.config import IMAGENET_VAL_IMAGES
from eval.errors import UsageError
from eval.request import Benchmark

TASK = "image-classification"
DATASET = "imagenet-1k"  # its id on the hub
DATASET_NAME = "ImageNet-1k (ILSVRC2012 validation)"
SPLIT = "validation"
JUDGED = ("PASS", "FAIL")
_SAID = ("form", "preprocess", "precision", "backend")  # stated with each figure


def model_card(rows: Sequence[Mapping[str, Any]], *, model_name: str) -> str:
    """The metadata block of a model card, for the top of its ``README.md``.

    Args:
        rows: those of a run's ``summary.csv``, by name of the column: ``form``, ``preprocess``,
            ``precision``, ``backend``, ``verdict``, ``images``, ``images_expected``,
            ``bad_images``, ``top1_correct`` and ``top5_correct``.
        model_name: what the card calls the model.

    Returns:
        YAML between two lines of ``---``: for each row, its top-1 and top-5 accuracy in percent.

    Raises:
        UsageError: the run did not cover the whole validation set, its verdict is neither PASS
            nor FAIL, or its counts make no sense.
    """
    if not model_name.strip():
        raise UsageError("A model card needs the name of its model.")
    _check_all(rows)
    from huggingface_hub import EvalResult, ModelCardData  # takes a quarter of a second

    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=DATASET,
            dataset_name=DATASET_NAME,
            dataset_split=SPLIT,
            metric_type="accuracy",
            metric_name=f"Accuracy top-{k} ({row['form']})",
            metric_value=100 * int(row[f"top{k}_correct"]) / int(row["images"]),
            metric_args={"top_k": k, **{name: str(row[name]) for name in _SAID}},
        )
        for row in rows
        for k in (1, 5)
    ]
    try:
        data = ModelCardData(model_name=model_name, eval_results=results)
    except ValueError as error:  # by huggingface_hub's own checks
        raise UsageError(f"The result does not fit a model card: {error}.") from error
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def eval_results(rows: Sequence[Mapping[str, Any]], *, benchmark: Benchmark) -> dict[str, str]:
    """The files of a result for the folder ``.eval_results`` of a model's repository.

    Args:
        rows: as for `model_card`, with ``started_at`` (UTC, ISO 8601).
        benchmark: the leaderboard. There is no default: no benchmark of ImageNet is known to us.

    Returns:
        The YAML by the name of its file, one for each form: top-1 accuracy in percent.

    Raises:
        UsageError: as `model_card`.
    """
    _check_all(rows)
    from huggingface_hub.utils import yaml_dump

    name = benchmark.dataset.partition("/")[2].lower()
    return {
        f"{name}-{row['form']}.yaml": yaml_dump(
            [
                {
                    "dataset": {"id": benchmark.dataset, "task_id": benchmark.task},
                    "value": 100 * int(row["top1_correct"]) / int(row["images"]),
                    "date": str(row["started_at"]),
                    "notes": f"top-1 in percent; {', '.join(str(row[said]) for said in _SAID)}",
                }
            ],
            sort_keys=False,
        )
        for row in rows
    }


def _check_all(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise UsageError("There is no result for a model card: the summary has no rows.")
    for row in rows:
        _check(row)


def _check(row: Mapping[str, Any]) -> None:
    form, verdict = row["form"], str(row["verdict"])
    images, expected, bad = (int(row[n]) for n in ("images", "images_expected", "bad_images"))
    if verdict not in JUDGED:
        raise UsageError(
            f"No model card: the verdict of {form} is {verdict}.\n"
            f"Only {' and '.join(JUDGED)} come from a complete run with a reference."
        )
    if not images == expected == IMAGENET_VAL_IMAGES or bad:
        raise UsageError(
            f"No model card: {form} was measured on {images - bad:,} of {expected:,} images.\n"
            f"A card states the accuracy on all {IMAGENET_VAL_IMAGES:,} of the validation set."
        )
    if row["top5_correct"] in (None, ""):
        raise UsageError(f"No model card: the top-5 accuracy of {form} is unknown.")
    top1, top5 = int(row["top1_correct"]), int(row["top5_correct"])
    if not 0 <= top1 <= top5 <= images:
        raise UsageError(f"No model card: {form} has {top1} and {top5} of {images} correct.")
