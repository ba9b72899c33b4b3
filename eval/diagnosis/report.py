"""The result of a diagnosis: outcome, text and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eval.diagnosis.search import Findings, Trial, Undecided

FAR_BELOW = 0.001  # an accuracy is called too low if chance gives it with less probability
NEAR_CHANCE = 0.1  # an accuracy below this is of no trained model; with few classes, see below
SHOWN = 12  # setups in the text; the JSON and the page have all
_NAME = 40  # columns of the name of a change
WIDTH = 80  # columns of the text


@dataclass(frozen=True)
class Expected:
    """A reported accuracy, in percent."""

    top1: float
    source: str

    def is_missed(self, correct: int, images: int) -> bool:
        """Whether so few are correct that chance cannot explain it (a binomial test)."""
        from scipy.stats import binom

        return bool(binom.cdf(correct, images, self.top1 / 100) < FAR_BELOW)


@dataclass(frozen=True)
class Diagnosis:
    """What `eval.jobs.diagnose.diagnose` gives.

    Attributes:
        data: where the images were, and in which layout.
        findings: what was tried, and what follows.
        caution: a warning that must stand above every figure; empty for most.
        classes: how many classes a prediction chooses from.
        preprocess: the ``--preprocess`` that runs what was found, or what was configured if nothing
            was; None where there is none.
        described: the preprocessing as configured, in words.
    """

    subject: str
    data: str
    findings: Findings
    expected: Expected | None = None
    notes: tuple[str, ...] = ()
    caution: str = ""
    classes: int = 1000
    preprocess: str | None = None
    described: str = ""

    @property
    def as_is_correct(self) -> int:
        """Images that are correct as configured."""
        return int(self.findings.is_correct.sum())

    @property
    def outcome(self) -> str:
        """``healthy``, ``explained`` or ``unexplained``."""
        if self.findings.best:
            return "explained"
        return "unexplained" if self.is_too_low(self.as_is_correct) else "healthy"

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong."""
        return 0 if self.outcome == "healthy" else 1

    def is_too_low(self, correct: int) -> bool:
        """Far below the reported accuracy, or near chance."""
        return bool(self.why_too_low(correct))

    def why_too_low(self, correct: int) -> str:
        """In words; empty if it is not."""
        images = self.findings.images
        if self.expected and self.expected.is_missed(correct, images):
            return "far below the reported accuracy"
        is_near = correct < max(NEAR_CHANCE, 2 / self.classes) * images
        return f"near chance, which is 1 in {self.classes:,}" if is_near else ""

    @property
    def advice(self) -> str:
        """What to do, in sentences."""
        best = self.findings.best
        if best:
            return " ".join(dict.fromkeys(change.advice for change in best.changes))
        if self.outcome == "unexplained":
            return (
                "None of the known mistakes explains it: check that the checkpoint is of this "
                "model and fully trained, and that the labels belong to the images."
            )
        return "Nothing to change."

    def as_json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        findings = self.findings
        best = findings.best
        return {
            "outcome": self.outcome,
            "images": findings.images,
            "as_is": {"top1_correct": self.as_is_correct, "form": findings.as_is.form},
            "changes": best.as_json if best else {},
            "with_changes": {"top1_correct": best.correct if best else self.as_is_correct},
            "tried": [_tried(trial) for trial in findings.trials if trial.images],
            "alternatives": [_undecided(row) for row in findings.alternatives],
            "undecided": _undecided(findings.undecided) if findings.undecided else None,
            "not_tried": findings.refused,
            "passes": round(findings.passes, 2) if findings.pass_seconds else None,
            "seconds": round(findings.seconds, 2),
            "notes": list(self.notes),
            "preprocess": self.preprocess,
            "advice": self.advice,
        }


def _tried(trial: Trial) -> dict[str, Any]:
    return {
        "changes": trial.as_json,
        "library": trial.library,
        "images": trial.images,
        "top1_correct": trial.correct,
        "gained": trial.gained,
        "lost": trial.lost,
        "p_value": trial.p_value,
        "p_corrected": trial.p_corrected,
    }


def _undecided(row: Undecided) -> dict[str, Any]:
    return {
        "changes": row.trial.as_json,
        "top1_correct": row.trial.correct,
        "images_to_decide": row.images,
    }


def text(diagnosis: Diagnosis) -> str:
    """A report for a terminal, without a trailing newline."""
    findings = diagnosis.findings
    as_is, setup = diagnosis.as_is_correct, findings.as_is
    how = diagnosis.described or setup.recipe.words
    lines = [diagnosis.caution] if diagnosis.caution else []
    lines += [
        f"{diagnosis.subject} on {findings.images:,} images of {diagnosis.data}",
        "",
        f"as configured: {_share(as_is, findings.images)}",
        *_wrapped(f"{setup.form}, {setup.backend}, {setup.precision}; {how}"),
    ]
    if diagnosis.expected:
        expected = diagnosis.expected
        lines += [f"reported:      {expected.top1:g} %", *_wrapped(expected.source)]
    sentences = [
        *_conclusion(diagnosis),
        *(f"Note: {note}" for note in diagnosis.notes),
        *(f"Not tried: {name}: {reason}" for name, reason in findings.refused.items()),
    ]
    lines += ["", *_table(findings), ""]
    lines += [line for sentence in sentences for line in _wrap(sentence)]
    # Without a pass, it had the answers, and computed nothing.
    if findings.pass_seconds and findings.seconds >= 1:
        lines.append(
            f"{findings.seconds:.0f} s, {findings.passes:.1f} times one pass over the sample."
        )
    return "\n".join(lines)


def _wrapped(words: str) -> list[str]:
    """Words below a figure."""
    return _wrap(words, " " * 15)


def _wrap(words: str, indent: str = "", width: int = WIDTH, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        words,
        width,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _share(correct: int, images: int) -> str:
    return f"{correct:,} of {images:,} correct ({100 * correct / images:.1f} %)"


def _table(findings: Findings) -> Iterator[str]:
    """The most promising setups that were tried."""
    tried = [trial for trial in findings.trials if trial.images]
    header = f"{'tried':<{_NAME}} {'images':>6} {'correct':>7} {'gained':>6} {'lost':>4}"
    yield f"{header} {'corrected p':>11}"
    for trial in tried[:SHOWN]:
        *above, name = _wrap(trial.name, width=_NAME, hanging="  ")
        yield from above
        yield (
            f"{name:<{_NAME}} {trial.images:6,} {trial.correct:7,} {trial.gained:6,} "
            f"{trial.lost:4,} {trial.p_corrected:11.2g}"
        )
    if len(tried) > SHOWN:
        yield f"... and {len(tried) - SHOWN} less promising ones"


def _conclusion(diagnosis: Diagnosis) -> Iterator[str]:
    findings, best = diagnosis.findings, diagnosis.findings.best
    if best:
        yield (
            f"EXPLAINED by {best.name}: {_share(best.correct, findings.images)} instead of "
            f"{diagnosis.as_is_correct:,}"
        )
        yield diagnosis.advice
        if diagnosis.preprocess and best.setup.recipe != findings.as_is.recipe:
            yield f"It runs with --preprocess {diagnosis.preprocess}"
        for row in findings.alternatives:
            yield (
                f"{row.trial.name} does as well here ({row.trial.correct:,}): the sample cannot "
                f"tell the two apart. {_more_images(row.images)}"
            )
        if diagnosis.is_too_low(best.correct):
            why = diagnosis.why_too_low(best.correct)
            yield f"That is still {why}: something else is wrong, too."
        return
    if diagnosis.outcome == "unexplained":
        tried = {change.name for t in findings.trials if t.images for change in t.changes}
        why = diagnosis.why_too_low(diagnosis.as_is_correct)
        yield (
            f"UNEXPLAINED: {_share(diagnosis.as_is_correct, findings.images)} is {why}; "
            f"{len(tried)} known mistakes, and pairs of them, are excluded"
        )
        yield diagnosis.advice
    else:
        yield "HEALTHY: none of the known changes beats the configured setup beyond chance"
    if findings.undecided:
        row = findings.undecided
        yield (
            f"{row.trial.name} has {row.trial.correct:,} correct instead of "
            f"{diagnosis.as_is_correct:,}, which {findings.images:,} images cannot tell from "
            f"chance. {_more_images(row.images)}"
        )


def _more_images(images: int | None) -> str:
    if images is None:
        return "The difference, if there is one, is too small to matter."
    return f"About {images:,} images would decide (--images {images})."
