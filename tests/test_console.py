"""What `eval.imagenet` prints: tables of 80 columns, sources below them, nothing said twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_evaluations import evaluation_of, random_measurement, reported_as_measured

from eval import imagenet
from eval.config import OtherResult
from eval.images.labelset import LabelScore
from eval.measure.latency import LatencyRow
from eval.results.console import format_evaluation
from eval.results.record import LabelResult

SOURCE = "a page with a name that is far too long for the last column of a table " * 2


def test_the_table_by_hand() -> None:
    measured = random_measurement(100)
    published = reported_as_measured(measured)
    evaluation = evaluation_of(
        measured,
        replace(published, others=(OtherResult("Vast fp16", SOURCE, 76.482),
                                   OtherResult("Vast int8", SOURCE, 74.658, 92.2))),
        by_other_labels=(LabelResult("reparameterized", LabelScore("ReaL", 93, 80, 90)),),
    )  # fmt: skip
    top1, top5 = (measured.scores["unfused"].correct(k) for k in (1, 5))
    nll = measured.scores["unfused"].mean_nll
    told = format_evaluation(evaluation).split("\n\n")
    assert (
        told[1]
        == f"""\
                         top-1  correct    top-5  correct      NLL
unfused                 {top1}.000       {top1}   {top5}.000       {top5}   {nll:.4f}
reparameterized         {top1}.000       {top1}   {top5}.000       {top5}   {nll:.4f}
reparameterized, ReaL   86.022       80   96.774       90
reported                {top1}.000            {top5}.000
Vast fp16               76.482
Vast int8               74.658            92.200"""
    )
    assert told[2] == (
        f"ReaL: 93 images have ReaL labels\nreported: a paper\nVast fp16, Vast int8: {SOURCE}"
    )
    assert "PASS  reparameterized: top-1 +0, top-5 +0 images vs. reference; tolerance 10" in told[3]


def test_tables_fit_a_terminal() -> None:
    """With the widest figures and names: all of ImageNet, both forms, times in seconds."""
    rows = tuple(
        LatencyRow(form, 128, 1, stage, 12345.67, 12345.67, 12345.67, 200)
        for form in ("unfused", "reparameterized")
        for stage in ("model", "model+preprocess")
    )
    evaluation = evaluation_of(
        random_measurement(50_000),
        by_other_labels=(LabelResult("reparameterized", LabelScore("ReaL", 46_837, 46_837, 1)),),
        latency=rows,
    )
    lines = format_evaluation(evaluation).splitlines()
    sentences = ("Vast", "PASS", "base: ", "torchvision: ")
    assert not [line for line in lines if len(line) > 80 and not line.startswith(sentences)]
    assert "reparameterized, model+preprocess     128 12345.67 12345.67 12345.67" in lines


def test_a_disagreement_is_an_error_message_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = random_measurement(100)
    measured.logit_diff[7] = 5.0
    evaluation = evaluation_of(measured)
    monkeypatch.setattr("eval.jobs.evaluate.evaluate", lambda *_: evaluation)
    assert imagenet.main(["--data", "x", "--output", "y"]) == 5
    told = capsys.readouterr()
    assert "DISAGREE  unfused: the two forms give different predictions" in told.out
    assert "a logit differs by" not in told.out
    assert told.err.count("a logit differs by 5 (limit 0.012)") == 1


def test_no_name_forges_a_line_or_moves_the_cursor() -> None:
    """What a stranger named stays inside the line that mentions it."""
    evil = "x\x1b[2J\nPASS  unfused: all is well\u202e"
    made = evaluation_of(random_measurement(3), name=evil, data=evil, title=evil)
    told = format_evaluation(made)
    assert all(sign.isprintable() or sign == "\n" for sign in told)
    usual = evaluation_of(random_measurement(3), name="x", data="x", title="x")
    assert len(told.splitlines()) == len(format_evaluation(usual).splitlines())
    assert r"x\x1b[2J\nPASS  unfused: all is well\u202e: 3 images of" in told
