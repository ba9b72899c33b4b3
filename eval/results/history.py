"""A history: a CSV file with the rows of many ``summary.csv``, and its trend.

A lock file beside it makes writers take turns; the lock ends with the process that holds it. Each
writer replaces the file by one that has its rows as well, so that whoever dies or reads meanwhile,
it is whole.
"""

from __future__ import annotations

import csv
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UsageError
from eval.files import locked, write_atomically
from eval.judge.result import Row
from eval.metrics import percent
from eval.results.read import read_rows, read_table
from eval.results.schema import ADDED_COLUMNS, SUMMARY_COLUMNS, SUMMARY_FILE
from eval.text import csv_cell, printable

if TYPE_CHECKING:  # takes a second, and only drawing needs it
    from matplotlib.axes import Axes

Series = dict[tuple[str, str], list[Row]]  # (variant, form) to its rows, oldest first


MOST_PANELS = 40  # variants in one plot


def check_history(path: Path) -> None:
    """Check, before a run is measured, that its rows can be added to a history.

    This makes the folder and the lock file if they are missing, but not the history itself.
    """
    try:
        _refuse_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{path}.lock").open("ab"):
            pass
        _content(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _refuse_folder(path: Path) -> None:
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise UsageError(f"{path} cannot be written: it is {what}. Name a file for the history.")


def append_history(path: Path, result: Path) -> None:
    """Add the rows of a result to a history, which is made if it is missing.

    Any number of processes may do so at once. If this fails or is interrupted, the
    history has none of the rows, and stderr shows how to add them later.
    """
    added = read_rows(result / SUMMARY_FILE if result.is_dir() else result)
    rows = _csv([csv_cell(row.cells[name]) for name in SUMMARY_COLUMNS] for row in added)
    later = f"python -m eval.history {path} --add {result}"
    try:
        _refuse_folder(path)
        path = path.resolve() if path.is_symlink() else path  # the lock is that of the file
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, f"Nothing was added. Later: {later}"):
            write_atomically(path, (_content(path) or _csv([SUMMARY_COLUMNS])) + rows)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}.\nAdd the result later: {later}"
        ) from error
    except KeyboardInterrupt:
        print(f"The result was not added to {path}. Later: {later}", file=sys.stderr)
        raise


def _content(path: Path) -> str:
    """A history as it is, with its line ends; empty if there is none yet."""
    if not path.exists():
        return ""
    with path.open("r+", encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = file.read()
    if not text:
        return ""
    header = read_table(path)[0]
    if header == list(SUMMARY_COLUMNS):
        return text
    if header == list(SUMMARY_COLUMNS[: -len(ADDED_COLUMNS)]):
        return _widened(text)
    raise UsageError(
        f"{path} has other columns than a history of eval.imagenet. Name another file."
    )


def _widened(text: str) -> str:
    """A history of an earlier version, with the columns that it does not have, empty."""
    header, *rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    empty = [""] * len(ADDED_COLUMNS)
    return _csv([[*header, *ADDED_COLUMNS], *([*row, *empty] for row in rows if row)])


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_history(path: Path, variant: str | None = None, form: str | None = None) -> Series:
    """Rows of a history by variant and form, oldest first."""
    rows = read_rows(path)
    series: Series = {}
    for row in sorted(rows, key=lambda row: row.started_at):
        if variant in (None, row.variant) and form in (None, row.form):
            series.setdefault((row.variant, row.form), []).append(row)
    if not series:
        known = ", ".join(dict.fromkeys(f"{row.variant} {row.form}" for row in rows))
        raise UsageError(f"{path} has no such runs. It has: {printable(known)}.")
    return series


def trend(series: Series) -> str:
    """The runs as tables, without a trailing newline: one for each form and preprocessing.

    The change is in images, from the previous run on the same images; a star marks other weights.
    """
    tables = []
    for (variant, form), rows in series.items():
        for preprocess in dict.fromkeys(row.preprocess for row in rows):
            chosen = [row for row in rows if row.preprocess == preprocess]
            runs = f"{len(chosen)} runs" if len(chosen) > 1 else "1 run"
            heading = printable(f"{variant}, {form}, {preprocess}: {runs}")
            tables.append("\n".join([heading, *_table(variant, chosen)]))
    return "\n\n".join(tables)


_HEADER = (
    f"{'images':>7}{'top-1':>8}{'change':>8}{'top-5':>8}{'change':>8}{'img/s':>8}  {'verdict':<12}"
)


def _table(variant: str, rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table; 80 columns wide where the runs have the ids that we give them."""
    header, *names = _names(variant, rows)
    width = max(map(len, (header, *names)))
    yield f"{header:<{width}}{_HEADER}".rstrip()
    last: dict[str, Row] = {}
    for name, row in zip(names, rows, strict=True):
        figures = _figures(row, last.get(row.dataset_sha256))
        yield f"{name:<{width}}{figures}  {row.verdict}"
        last[row.dataset_sha256] = row


def _names(variant: str, rows: Sequence[Row]) -> list[str]:
    """A column with its header: run ids without the variant, or times and ids of another form."""
    names, others = [f"{variant}-..."], ["started (UTC)    run"]
    for row in rows:
        time = row.started_at.astimezone(UTC)
        names.append(f"{time:%Y%m%dT%H%M%SZ}")
        others.append(f"{time:%Y-%m-%d %H:%M} {row.run_id}")
    usual = all(
        row.run_id == f"{variant}-{name}" for row, name in zip(rows, names[1:], strict=True)
    )
    return [printable(name) for name in (names if usual else others)]


def _figures(row: Row, before: Row | None) -> str:
    figures = f"{row.images:>7,}"
    for k in (1, 5):
        count, earlier = row.counts.get(k), before.counts.get(k) if before else None
        change = ""
        if before and count is not None and earlier is not None:
            star = " " if row.weights_sha256 == before.weights_sha256 else "*"
            change = f"{count - earlier:+,}{star}"
        share = "" if count is None else f"{percent(count, row.images):.3f}"
        figures += f"{share:>8}{change:>8}"
    rate = row.cells["images_per_second"]
    return f"{figures}{f'{float(rate):.1f}' if rate else '':>8}"


def plot(series: Series, path: Path) -> None:
    """Draw top-1 over time: a panel per variant, a line per form, preprocessing and images."""
    variants = list(dict.fromkeys(variant for variant, _ in series))
    if len(variants) > MOST_PANELS:
        raise UsageError(
            f"--plot draws at most {MOST_PANELS} variants, and there are {len(variants)}. "
            "Choose one with --variant."
        )
    from eval.results.drawing import Figure, matplotlib, save

    # Text stays text, also if it holds a $ or a sign that the font does not have.
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(9, 0.5 + 2.8 * len(variants)), layout="constrained")
        panels = figure.subplots(len(variants), squeeze=False, sharex=True)[:, 0]
        for variant, panel in zip(variants, panels, strict=True):
            _draw(panel, variant, [row for (name, _), rows in series.items() for row in rows
                                   if name == variant])  # fmt: skip
        save(figure, path)


def _draw(panel: Axes, variant: str, rows: Sequence[Row]) -> None:
    """Draw the runs of a variant, oldest first; those on other images are another line."""
    lines: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.form, row.preprocess, row.dataset_sha256), []).append(row)
    for number, ((form, preprocess, _), line) in enumerate(lines.items()):
        panel.plot(
            [row.started_at.timestamp() / 86400 for row in line],  # matplotlib's dates
            [percent(row.top1_correct, row.images) for row in line],
            marker="o",
            markersize=max(3, 8 - 2 * number),  # forms mostly agree: let each be seen
            label=printable(f"{form}, {preprocess}, {line[0].images:,} images"),
        )
    for reference in sorted({row.cells["reference_top1"] for row in rows} - {""}):
        panel.axhline(float(reference), linestyle="--", color="gray", label=f"reported {reference}")
    panel.xaxis_date()
    panel.set(title=printable(variant), ylabel="top-1, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
