"""Files for the Hugging Face Hub, read back by huggingface_hub and as plain YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from small_evaluations import evaluation_of, random_measurement

from eval import Request
from eval.errors import UsageError
from eval.jobs.evaluate import follow_up
from eval.results.folder import OutputFolder
from eval.results.model_card import Benchmark, eval_results, model_card

BENCHMARK = Benchmark("someone/ImageNet-1k", "val_top1")
ROW: dict[str, Any] = {
    "started_at": "2026-01-01T00:00:00+00:00",
    "form": "reparameterized",
    "preprocess": "paddle",
    "precision": "fp32",
    "backend": "torch",
    "verdict": "PASS",
    "images": "50000",  # as in the file
    "images_expected": "50000",
    "bad_images": "0",
    "top1_correct": "40035",
    "top5_correct": "47435",
}


def test_one_form_by_hand() -> None:
    text = model_card([ROW], model_name="PPLCNetV2_base_ssld")
    assert text.startswith("---\n")
    assert text.endswith("\n---\n")
    said = {"form": "reparameterized", "preprocess": "paddle", "precision": "fp32",
            "backend": "torch"}  # fmt: skip
    assert yaml.safe_load(text.strip("-\n")) == {
        "model-index": [
            {
                "name": "PPLCNetV2_base_ssld",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "name": "ImageNet-1k (ILSVRC2012 validation)",
                            "type": "imagenet-1k",
                            "split": "validation",
                        },
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": 80.07,
                                "name": "Accuracy top-1 (reparameterized)",
                                "args": {"top_k": 1, **said},
                            },
                            {
                                "type": "accuracy",
                                "value": 94.87,
                                "name": "Accuracy top-5 (reparameterized)",
                                "args": {"top_k": 5, **said},
                            },
                        ],
                    }
                ],
            }
        ]
    }


def test_the_hub_reads_it_back() -> None:
    rows = [ROW, ROW | {"form": "unfused", "top1_correct": 40034, "verdict": "FAIL"}]
    text = model_card(rows, model_name="a: name\nof two lines")
    card = ModelCard(text + "\n# A card\n")
    assert card.data.model_name == "a: name\nof two lines"
    assert [(each.metric_name, each.metric_value) for each in card.data.eval_results] == [
        ("Accuracy top-1 (reparameterized)", 80.07),
        ("Accuracy top-5 (reparameterized)", 94.87),
        ("Accuracy top-1 (unfused)", 80.068),
        ("Accuracy top-5 (unfused)", 94.87),
    ]
    index = yaml.safe_load(text.strip("-\n"))["model-index"]
    assert model_index_to_eval_results(index)[1] == card.data.eval_results


def test_values_are_the_hubs_types() -> None:
    """As the specification of model-index has them: text, numbers, and nothing empty."""
    index = yaml.safe_load(model_card([ROW], model_name="m").strip("-\n"))["model-index"]
    (result,) = index[0]["results"]
    assert set(result) == {"task", "dataset", "metrics"}
    for metric in result["metrics"]:
        assert isinstance(metric["value"], float)
        assert None not in metric.values()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "PARTIAL"}, "the verdict of reparameterized is PARTIAL"),
        ({"verdict": "NO_REFERENCE"}, "is NO_REFERENCE"),
        ({"verdict": "DISAGREE"}, "is DISAGREE"),
        ({"verdict": "INCOMPLETE"}, "is INCOMPLETE"),
        ({"verdict": ""}, "the verdict of reparameterized is "),
        ({"images": 1000, "images_expected": 1000}, "measured on 1,000 of 1,000 images"),
        ({"images": 49_999}, "measured on 49,999 of 50,000 images"),
        ({"images_expected": 50_001}, "measured on 50,000 of 50,001 images"),
        ({"bad_images": 1}, "measured on 49,999 of 50,000 images"),
        ({"top1_correct": 47_436}, "47436 and 47435 of 50000 correct"),
        ({"top5_correct": 50_001}, "40035 and 50001 of 50000"),
        ({"top1_correct": -1}, "-1 and 47435"),
    ],
)
def test_other_results_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        model_card([ROW, ROW | changes], model_name="m")
    assert len(str(caught.value).splitlines()) <= 2
    with pytest.raises(UsageError, match=re.escape(message)):
        eval_results([ROW, ROW | changes], benchmark=BENCHMARK)


def test_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no rows"):
        model_card([], model_name="m")
    with pytest.raises(UsageError, match="no rows"):
        eval_results([], benchmark=BENCHMARK)
    with pytest.raises(UsageError, match="name of its model"):
        model_card([ROW], model_name=" ")


# .eval_results


def test_eval_results_by_hand() -> None:
    """Keys and types as in eval_results.yaml of huggingface/hub-docs; the date is text there."""
    rows = [ROW | {"form": "unfused", "top1_correct": 40034, "verdict": "FAIL"}, ROW]
    files = eval_results(rows, benchmark=BENCHMARK)
    assert list(files) == ["imagenet-1k-unfused.yaml", "imagenet-1k-reparameterized.yaml"]
    (entry,) = yaml.safe_load(files["imagenet-1k-reparameterized.yaml"])
    assert entry == {
        "dataset": {"id": "someone/ImageNet-1k", "task_id": "val_top1"},
        "value": 80.07,
        "date": "2026-01-01T00:00:00+00:00",
        "notes": "top-1 in percent; reparameterized, paddle, fp32, torch",
    }
    assert yaml.safe_load(files["imagenet-1k-unfused.yaml"])[0]["value"] == 80.068


@pytest.mark.skipif(
    not hasattr(huggingface_hub, "parse_eval_result_entries"),
    reason="this huggingface_hub is older than .eval_results",
)
def test_the_hub_reads_eval_results_and_would_write_the_same() -> None:
    (text,) = eval_results([ROW], benchmark=BENCHMARK).values()
    written = yaml.safe_load(text)
    entries = huggingface_hub.parse_eval_result_entries(written)
    assert [(e.dataset_id, e.task_id, e.value, e.source_url) for e in entries] == [
        ("someone/ImageNet-1k", "val_top1", 80.07, None)
    ]
    assert huggingface_hub.eval_result_entries_to_yaml(entries) == written


@pytest.mark.parametrize(
    "text", ["imagenet-1k", "a/b", "a/b:", "a:b", "a/b/c:d", "a/../b:c", "a/b: c", "a/é:c"]
)
def test_what_names_no_benchmark(text: str) -> None:
    with pytest.raises(UsageError, match="use ORG/NAME:TASK"):
        Request(data="x", model_card="README.md", hub_benchmark=text)


def test_a_benchmark_needs_a_card() -> None:
    with pytest.raises(UsageError, match="--model-card FILE"):
        Request(data="x", hub_benchmark="a/b:c")


def test_a_run_writes_both(tmp_path: Path) -> None:
    evaluation = evaluation_of(random_measurement(50_000))
    card = tmp_path / "README.md"
    request = Request(data="x", model_card=card, hub_benchmark="a/b:c")
    assert not follow_up(evaluation, request, OutputFolder(None)).problems
    share = 100 * evaluation.measured.scores["unfused"].correct(1) / 50_000
    assert ModelCard.load(card).data.eval_results[0].metric_value == share
    files = sorted((tmp_path / ".eval_results").iterdir())
    assert [file.name for file in files] == ["b-reparameterized.yaml", "b-unfused.yaml"]
    for file in files:
        assert yaml.safe_load(file.read_text())[0]["value"] == share


def test_a_part_of_the_set_writes_neither(tmp_path: Path) -> None:
    evaluation = evaluation_of(random_measurement(1_000))
    request = Request(data="x", model_card=tmp_path / "README.md", hub_benchmark="a/b:c")
    (problem,) = follow_up(evaluation, request, OutputFolder(None)).problems
    assert "1,000 of 1,000 images" in str(problem)
    assert list(tmp_path.iterdir()) == []
