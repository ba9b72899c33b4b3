"""An evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from eval.judge.verdict import FormResult
from eval.results.schema import TOP

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

_HEADER = f"{'':<16} {'top-1':>8} {'correct':>8} {'top-5':>8} {'correct':>8} {'NLL':>8}"


def format_evaluation(evaluation: Evaluation) -> str:
    """Format the results, the reference and the verdict, without a trailing newline."""
    subject, measured = evaluation.subject, evaluation.measured
    first = evaluation.judgement.forms[0]
    lines = [subject.caution] if subject.caution else []
    lines += [
        f"{subject.name}: {first.images:,} images of {evaluation.data} ({measured.valset.layout})",
        f"{subject.preprocess.name}: {subject.preprocess.description}",
        "",
        _HEADER,
        *_measured(evaluation),
        *_published(evaluation, first),
        "",
        *_remarks(evaluation, first),
        *(f"{r.verdict}  {r.form}: {r.reason}" for r in evaluation.judgement.forms),
        *evaluation.judgement.warnings,
    ]
    if evaluation.judgement.disagreement:
        lines.append(evaluation.judgement.disagreement)
    return "\n".join(lines)


def _measured(evaluation: Evaluation) -> Iterator[str]:
    for result in evaluation.judgement.forms:
        nll = evaluation.measured.scores[result.form].mean_nll
        yield (
            f"{result.form:<16} {result.accuracy(1):8.3f} {result.correct[1]:8,} "
            f"{result.accuracy(TOP):8.3f} {result.correct[TOP]:8,} "
            + ("" if nll is None else f"{nll:8.4f}")
        )
    for form, score in evaluation.by_other_labels:
        yield (
            f"{form:<16} {score.top1:8.3f} {score.top1_correct:8,} "
            f"{score.top5:8.3f} {score.top5_correct:8,} {'':8}   {score.name}, "
            f"{score.images:,} images"
        )


def _published(evaluation: Evaluation, first: FormResult) -> Iterator[str]:
    published = evaluation.subject.published
    if first.reference[1] is not None:
        figures = _figures(published.reference_word, first.reference[1], first.reference[TOP])
        yield f"{figures}   {first.reference_source}"
    for other in published.others_on(evaluation.measured.valset.image_set):
        yield f"{_figures(other.name, other.top1, other.top5)}   {other.source}"


def _figures(name: str, top1: float, top5: float | None) -> str:
    shown = "" if top5 is None else f"{top5:.3f}"
    return f"{name:<16} {top1:8.3f} {'':8} {shown:>8} {'':8} {'':8}"


def _remarks(evaluation: Evaluation, first: FormResult) -> Iterator[str]:
    measured = evaluation.measured
    if measured.max_logit_diff is not None:
        yield (
            f"Between the forms: largest logit difference {measured.max_logit_diff:.2g}, "
            f"{len(measured.flips)} different top-1 predictions"
        )
    if measured.bad:
        yield f"Bad images, counted as wrong: {len(measured.bad)} (bad_images.csv)"
    low, high = first.interval()
    rate = measured.images_per_second
    yield (
        f"95 % confidence interval of {first.form} top-1: {low:.3f} to {high:.3f}"
        + ("" if rate is None else f"; {rate:.1f} images/s")
    )
    for row in evaluation.latency:
        yield (
            f"Latency, {row.form}, {row.threads} threads, {row.stage}: {row.median_ms:.2f} ms "
            f"(90 %: {row.p90_ms:.2f}, 99 %: {row.p99_ms:.2f})"
        )
    if first.anytime:
        low, high = first.anytime
        yield (
            f"95 % confidence interval of top-1 on all {first.images_expected:,} images: "
            f"{low:.3f} to {high:.3f} (valid even if the run was stopped early)"
        )
