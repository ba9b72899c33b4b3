"""The metadata of a model card, read back by huggingface_hub and as plain YAML."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from eval.errors import UsageError
from eval.results.model_card import model_card

ROW: dict[str, Any] = {
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
    text = model_card([ROW], model_name="PPLCNetV2_base_ssld", source_url="https://example.org/r")
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
                        "source": {"name": "pplcnet-eval", "url": "https://example.org/r"},
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
    assert set(result) == {"task", "dataset", "metrics"}  # no source without a page
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


def test_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no rows"):
        model_card([], model_name="m")
    with pytest.raises(UsageError, match="name of its model"):
        model_card([ROW], model_name=" ")
