"""An evaluation as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eval.judge.verdict import FormResult
from eval.metrics import TOP
from eval.text import printable

if TYPE_CHECKING:
    from eval.measure.latency import LatencyRow
    from eval.results.record import Record

_NAME = 16  # columns; a longer name widens the table
_HEADER = ("", "top-1", "correct", "top-5", "correct", "NLL")

Cells = tuple[str, ...]  # of one line of the table; the name first


def format_evaluation(evaluation: Record) -> str:
    """Format the results, the reference and the verdict, without a trailing newline.

    How the forms disagree, where they do, is an error message and not part of it.
    """
    subject, measured = evaluation.subject, evaluation.measured
    first = evaluation.judgment.forms[0]
    lines = [subject.caution] if subject.caution else []
    lines += [
        f"{subject.name}: {first.images:,} images of {evaluation.data} ({measured.valset.layout})",
        f"{subject.preprocess.name}: {subject.preprocess.description}",
        "",
        *_table([_HEADER, *_measured(evaluation), *_published(evaluation, first)]),
        *_sources(evaluation, first),
        "",
        *_remarks(evaluation, first),
        *(f"{r.verdict}  {r.form}: {r.reason}" for r in evaluation.judgment.forms),
        *evaluation.judgment.warnings,
        *evaluation.judgment.ties,
    ]
    return "\n".join(map(printable, lines))


def _table(rows: list[Cells]) -> Iterator[str]:
    width = max(_NAME, *(len(name) for name, *_ in rows))
    for name, *cells in rows:
        yield f"{name:<{width}} {' '.join(f'{cell:>8}' for cell in cells)}".rstrip()


def _measured(evaluation: Record) -> Iterator[Cells]:
    for result in evaluation.judgment.forms:
        nll = evaluation.measured.scores[result.form].mean_nll
        yield (
            result.form,
            *(cell for k in (1, TOP) for cell in _counted(result, k)),
            "" if nll is None else f"{nll:.4f}",
        )
    for form, score in evaluation.by_other_labels:
        counts = (score.top1, score.top1_correct, score.top5, score.top5_correct)
        cells = (f"{n:,}" if isinstance(n, int) else f"{n:.3f}" for n in counts)
        yield (f"{form}, {score.name}", *cells, "")


def _counted(result: FormResult, k: int) -> tuple[str, str]:
    accuracy, count, _ = result.figures(k)
    return ("", "") if count is None else (f"{accuracy:.3f}", f"{count:,}")


def _published(evaluation: Record, first: FormResult) -> Iterator[Cells]:
    published = evaluation.subject.published
    if first.reference[1] is not None:
        yield _figures(published.reference_word, first.reference[1], first.reference[TOP])
    for other in published.others_on(evaluation.measured.valset.image_set.name):
        yield _figures(other.name, other.top1, other.top5)


def _figures(name: str, top1: float, top5: float | None) -> Cells:
    return (name, f"{top1:.3f}", "", "" if top5 is None else f"{top5:.3f}", "", "")


def _sources(evaluation: Record, first: FormResult) -> Iterator[str]:
    """Where the other figures in the table come from, each source once."""
    published = evaluation.subject.published
    names: dict[str, list[str]] = {}
    for _, score in evaluation.by_other_labels:
        names.setdefault(f"{score.images:,} images have {score.name} labels", [score.name])
    if first.reference[1] is not None:
        names.setdefault(first.reference_source, []).append(published.reference_word)
    for other in published.others_on(evaluation.measured.valset.image_set.name):
        names.setdefault(other.source, []).append(other.name)
    if names:
        yield ""
    for source, said in names.items():
        yield f"{', '.join(said)}: {source}"


def _remarks(evaluation: Record, first: FormResult) -> Iterator[str]:
    measured = evaluation.measured
    if measured.max_logit_diff is not None:
        yield (
            f"Between the forms: logits differ by at most {measured.max_logit_diff:.2g}, "
            f"{len(measured.flips):,} predictions differ"
        )
    if measured.valset.image_set.note:
        yield f"image set: {measured.valset.image_set.title}"
    if measured.bad:
        yield f"Bad images, counted as wrong: {len(measured.bad)} (bad_images.csv)"
    low, high = first.interval()
    rate, cached = measured.images_per_second, measured.from_cache
    yield (
        f"95 % confidence interval of {first.form} top-1: {low:.3f} to {high:.3f}"
        + ("" if rate is None else f"; {rate:.1f} images/s")
        + (f"; {cached:,} crops from --cache" if cached else "")
    )
    if first.anytime:
        low, high = first.anytime
        yield (
            f"On all {first.images_expected:,} images: {low:.3f} to {high:.3f}, valid wherever the "
            "run ended"
        )
    if evaluation.latency:
        yield ""
        yield from _latency(evaluation.latency)
        yield ""


def _latency(rows: Sequence[LatencyRow]) -> Iterator[str]:
    yield f"{'latency of one image, ms':<33} {'threads':>7} {'median':>8} {'90 %':>8} {'99 %':>8}"
    for row in rows:
        times = " ".join(f"{ms:8.2f}" for ms in (row.median_ms, row.p90_ms, row.p99_ms))
        yield f"{f'{row.form}, {row.stage}':<33} {row.threads:7} {times}"
