"""A comparison in words: text for a terminal, Markdown for a pull request, CSV and JUnit XML."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence

from eval.images.classes import IMAGENET, ImageClass
from eval.judge.gate import KS, ClassChange, Comparison, Flip, Paired
from eval.judge.result import Row
from eval.metrics import percent, wilson_interval
from eval.results.schema import CLASSES_TABLE, COMPARISON_TABLE, FLIPS_TABLE
from eval.text import csv_cell, markdown_text, printable

SHOWN = 20  # flips and classes in the Markdown; the CSV files have all
SHOWN_ON_STDOUT = 5

_KEY = ("variant", "baseline_form", "candidate_form")
_HEADER = f"{'':<15} top-1  correct  {'95 % interval':<18}    top-5  correct"
_WORDS = {True: "ok", False: "FAIL", None: "-"}


def verdict(comparisons: Sequence[Comparison]) -> str:
    """The answer in one line."""
    failed = [
        f"{row.name}: {check.name}"
        for row in comparisons
        for check in row.checks
        if check.passed is False
    ]
    return f"REGRESSED  {'; '.join(failed)}" if failed else "OK  not worse than the baseline"


def text(comparisons: Sequence[Comparison], sources: tuple[str, str]) -> str:
    """All comparisons for a person at a terminal, without a trailing newline."""
    lines = [f"baseline   {sources[0]}", f"candidate  {sources[1]}"]
    for row in comparisons:
        lines += [
            "",
            f"{row.name}: {row.candidate.images:,} images, {row.candidate.preprocess}",
            _HEADER,
            _figures("baseline", row.baseline),
            _figures("candidate", row.candidate),
        ]
        if row.paired:
            lines += _exchanges(row.paired)
            names = ClassNames(row)
            lines += [
                f"  {flip.path}: {names[flip.before]} -> {names[flip.after]}, {flip.kind}"
                for flip in row.paired.flips[:SHOWN_ON_STDOUT]
            ]
            if len(row.paired.flips) > SHOWN_ON_STDOUT:
                lines.append(f"  ... {len(row.paired.flips):,} changed predictions in all")
        lines += [f"{_WORDS[check.passed]:<5} {check.name}: {check.reason}" for check in row.checks]
        lines += [f"note  {note}" for note in row.notes]
    lines += ["", verdict(comparisons)]
    return "\n".join(printable(line) for line in lines)


def _figures(name: str, row: Row) -> str:
    low, high = wilson_interval(row.top1_correct, row.images)
    return (
        f"{name:<11}{percent(row.top1_correct, row.images):9.3f} {row.top1_correct:8,}  "
        f"{f'{low:.3f} to {high:.3f}':<18}{_top5(row)}".rstrip()
    )


def _top5(row: Row) -> str:
    if row.top5_correct is None:
        return ""
    return f"{percent(row.top5_correct, row.images):9.3f} {row.top5_correct:8,}"


def _exchanges(paired: Paired) -> list[str]:
    lines = []
    for k in paired.lost:
        p = paired.p_value(k)
        shown = f"= {p:.3g}" if p else "< 1e-300"
        lines.append(
            f"top-{k}: {paired.lost[k]:,} images lost, {paired.gained[k]:,} gained; exact "
            f"McNemar p {shown}"
        )
    return lines


class ClassNames:
    """What the classes of a comparison are called, by label.

    As the results list them. Where they do not, labels below 1000 are taken for ImageNet's.
    """

    def __init__(self, comparison: Comparison) -> None:
        paired = comparison.paired
        labels = [change.label for change in paired.classes] if paired else []
        for flip in paired.flips if paired else ():
            labels += [flip.label, flip.before, flip.after]
        classes = comparison.classes
        if classes is None and max(labels, default=0) < len(IMAGENET):
            classes = IMAGENET
        self._classes: tuple[ImageClass, ...] = classes.rows if classes else ()

    def __getitem__(self, label: int) -> str:
        """Number and first name: two classes of ImageNet are called "crane"."""
        if label < 0:
            return "not read"
        if label >= len(self._classes):
            return str(label)
        return f"{label} {self._classes[label].title.partition(',')[0]}".rstrip()

    def with_folder(self, label: int) -> str:
        """The name of its folder, too."""
        folder = self._classes[label].folder if label < len(self._classes) else ""
        return f"{folder} {self[label]}".lstrip()


def markdown(comparisons: Sequence[Comparison], sources: tuple[str, str]) -> str:
    """The report for a pull request or a step summary; bounded in size."""
    lines = [
        f"## Accuracy: {markdown_text(verdict(comparisons))}",
        "",
        f"Baseline {markdown_text(sources[0])}, candidate {markdown_text(sources[1])}.",
    ]
    for row in comparisons:
        runs = f"{markdown_text(row.baseline.run_id)} and {markdown_text(row.candidate.run_id)}"
        images = f"{row.candidate.images:,} images, {markdown_text(row.candidate.preprocess)}"
        lines += [
            "",
            f"### {markdown_text(row.name)}",
            "",
            f"{images}; runs {runs}.",
            "",
            *_table(("", "baseline", "candidate", "change"), _count_rows(row)),
            "",
            *_table(
                ("gate", "", "result"),
                ([check.name, _WORDS[check.passed], check.reason] for check in row.checks),
            ),
        ]
        if row.notes:
            lines += ["", f"Also: {markdown_text('; '.join(row.notes))}."]
        if row.paired:
            lines += ["", *(f"- {line}" for line in _exchanges(row.paired)), ""]
            names = ClassNames(row)
            lines += _flip_table(row.paired.flips, names)
            lines += ["", *_class_table(row.paired.classes, names)]
    return "\n".join(lines).rstrip() + "\n"


def _count_rows(row: Comparison) -> Iterable[list[str]]:
    for k in row.known:
        counts = row.baseline.counts[k], row.candidate.counts[k]
        figures = [f"{percent(count, row.candidate.images):.3f} % ({count:,})" for count in counts]
        intervals = [wilson_interval(count, row.candidate.images) for count in counts]
        yield [f"top-{k}", *figures, f"{counts[1] - counts[0]:+,}"]
        yield ["95 % interval", *(f"{low:.3f} to {high:.3f}" for low, high in intervals), ""]


def _flip_table(flips: Sequence[Flip], names: ClassNames) -> list[str]:
    if not flips:
        return []
    rows = (
        [flip.path, names[flip.label], names[flip.before], names[flip.after], flip.kind]
        for flip in flips[:SHOWN]
    )
    more = f"{len(flips):,} predictions changed; all are in {FLIPS_TABLE}."
    return [*_table(("image", "label", "before", "after", ""), rows), "", more]


def _class_table(classes: Sequence[ClassChange], names: ClassNames) -> list[str]:
    if not classes:
        return []
    rows = (
        [
            names.with_folder(row.label),
            str(row.images),
            str(row.before),
            str(row.after),
            f"{row.after - row.before:+}",
        ]
        for row in classes[:SHOWN]
    )
    more = f"{len(classes):,} classes changed; all are in {CLASSES_TABLE}."
    return [*_table(("class", "images", "before", "after", "change"), rows), "", more]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)]


def csv_files(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """``regression.csv``, a row per form; flips and classes where there are predictions."""
    rows: list[dict[str, object]] = []
    flips: list[dict[str, object]] = []
    classes: list[dict[str, object]] = []
    for row in comparisons:
        before, after, paired = row.baseline, row.candidate, row.paired
        key: dict[str, object]
        key = {"variant": after.variant, "baseline_form": before.form, "candidate_form": after.form}
        failed = [check.name for check in row.checks if check.passed is False]
        rows.append(
            key
            | {"baseline_run": before.run_id, "candidate_run": after.run_id}
            | {"baseline_verdict": before.verdict, "candidate_verdict": after.verdict}
            | {"images": after.images}
            | {f"baseline_top{k}_correct": before.counts.get(k) for k in KS}
            | {f"candidate_top{k}_correct": after.counts.get(k) for k in KS}
            | {f"lost_top{k}": paired.lost.get(k) if paired else None for k in KS}
            | {f"gained_top{k}": paired.gained.get(k) if paired else None for k in KS}
            | {f"p_top{k}": paired.p_value(k) if paired and k in paired.lost else None for k in KS}
            | {"flips": len(paired.flips) if paired else None}
            | {"verdict": "regressed" if failed else "ok", "failed": "; ".join(failed)}
        )
        if paired:
            flips += [key | _flip_cells(flip) for flip in paired.flips]
            classes += [key | vars(change) for change in paired.classes]
    files = {COMPARISON_TABLE: _csv(rows, rows[0])}
    if any(row.paired for row in comparisons):
        none = Flip("", 0, 0, 0, 0, 0)
        files[FLIPS_TABLE] = _csv(flips, (*_KEY, *_flip_cells(none)))
        files[CLASSES_TABLE] = _csv(classes, (*_KEY, *vars(ClassChange(0, 0, 0, 0))))
    return files


def _flip_cells(flip: Flip) -> dict[str, object]:
    """An image that was not read has empty cells, as in predictions.csv."""
    return {name: "" if cell == -1 else cell for name, cell in vars(flip).items()} | {
        "kind": flip.kind
    }


def _csv(rows: Iterable[dict[str, object]], columns: Iterable[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: csv_cell(v) if isinstance(v, str) else v for k, v in row.items()})
    return file.getvalue()


def junit(comparisons: Sequence[Comparison], error: Exception | None = None) -> str:
    """JUnit XML: a suite per form, a case per gate; one case in error where nothing compared."""
    root = ET.Element("testsuites", name="eval.regression")
    for row in comparisons:
        suite = _suite(root, row.name, [check.passed for check in row.checks])
        for check in row.checks:
            case = _case(suite, check.name)
            message = printable(check.reason)
            if check.passed is None:
                ET.SubElement(case, "skipped", message=message)
            elif not check.passed:
                ET.SubElement(case, "failure", message=message, type="regression").text = message
    if error:
        suite = _suite(root, "comparison", [], errors=1)
        message = printable(str(error))
        kind = type(error).__name__
        ET.SubElement(
            _case(suite, "comparable"), "error", message=message, type=kind
        ).text = message
    ET.indent(root)
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml.decode() + "\n"


def _suite(
    root: ET.Element, name: str, passed: Sequence[bool | None], errors: int = 0
) -> ET.Element:
    return ET.SubElement(
        root,
        "testsuite",
        name=printable(name),
        tests=str(len(passed) + errors),
        failures=str(passed.count(False)),
        errors=str(errors),
        skipped=str(passed.count(None)),
        time="0",
    )


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=suite.get("name", ""), name=name, time="0")
