"""``python -m eval.history FILE``: how accuracy and speed developed; and how a run is added.

A history is a CSV file with the rows of many ``summary.csv``. Writers take turns by a lock beside
it, which ends with the process that holds it, and add their rows in one write: no row is lost,
mixed or half, and what a killed writer left unfinished is cut off by the next one.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program
from eval.errors import EvalError, UsageError

if TYPE_CHECKING:  # neither is needed for --help
    from matplotlib.axes import Axes

    from eval.results.read import Row

Series = dict[tuple[str, str], list["Row"]]  # (variant, form) to its rows, oldest first


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.add:
            append_history(args.file, args.add)
        series = read_history(args.file, args.variant, args.form)
        print(trend(series), flush=True)
        if args.plot:
            plot(series, args.plot)
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # | head: nobody reads on, and the interpreter's last flush must not
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def check_history(path: Path) -> None:
    """Before hours are spent on a run: can its summary be added to this file?

    Raises:
        UsageError: it is a folder, or cannot be written to, or its folder cannot.
    """
    place = path if path.exists() else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if path.is_dir() or not os.access(place, os.W_OK):
        kind = "is a folder" if path.is_dir() else "cannot be written"
        raise UsageError(f"--history {path} {kind}.\nName a CSV file that can be written.")


def append_history(path: Path, result: Path) -> None:
    """Add the rows of a result to a history, which is made if it is not there.

    Any number of processes may do so at the same time.

    Args:
        path: the history.
        result: a result folder, or its ``summary.csv``.

    Raises:
        UsageError: the file has other columns, is damaged, or cannot be written to.
    """
    from filelock import FileLock

    from eval.results.read import SUMMARY, read_rows
    from eval.results.schema import SUMMARY_COLUMNS

    added = read_rows(result / SUMMARY if result.is_dir() else result)
    header = _csv([SUMMARY_COLUMNS])
    rows = _csv([row.cells[name] for name in SUMMARY_COLUMNS] for row in added)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), path.open("a+b") as file:
            file.seek(0)
            end = _end_of_rows(path, file.read(), header)
            file.truncate(end)
            file.write(rows if end else header + rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _end_of_rows(path: Path, data: bytes, header: bytes) -> int:
    """Where the next row belongs: behind the last whole one.

    What is cut off is only ever what a killed writer can have left, never somebody's file.
    """
    from eval.results.read import finished_length

    end = finished_length(data)
    rest = data[end:]
    first = data[: data.find(b"\n") + 1].replace(b"\r\n", b"\n").removeprefix(codecs.BOM_UTF8)
    if first != header if end else not header.startswith(rest):
        raise UsageError(
            f"{path} has other columns than a history of eval.imagenet. "
            "Name another file with --history."
        )
    if b"\n" in rest:
        raise UsageError(f"{path} is damaged: a quotation mark is open from byte {end} on.")
    return end


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_history(path: Path, variant: str | None = None, form: str | None = None) -> Series:
    """Rows of a history by variant and form, oldest first.

    Args:
        path: the history; a row that is being written is left out.
        variant: only this one.
        form: only this one.

    Raises:
        UsageError: it cannot be read, or has no such rows.
    """
    from eval.results.read import read_rows

    rows = read_rows(path, drop_unfinished=True)
    series: Series = {}
    for row in sorted(rows, key=lambda row: row.started_at):
        if variant in (None, row.variant) and form in (None, row.form):
            series.setdefault((row.variant, row.form), []).append(row)
    if not series:
        known = ", ".join(dict.fromkeys(f"{row.variant} {row.form}" for row in rows))
        raise UsageError(f"{path} has no such runs. It has: {known}.")
    return series


def trend(series: Series) -> str:
    """The runs as tables, without a trailing newline.

    The change is in images, from the run before it that was made on the same images with the same
    preprocessing; a star says that the weights are others.
    """
    tables = []
    for (variant, form), rows in series.items():
        runs = f"{len(rows)} runs" if len(rows) > 1 else "1 run"
        lines = [f"{variant}, {form}: {runs}", _HEADER]
        last: dict[tuple[str, str], Row] = {}
        for row in rows:
            kind = row.preprocess, row.dataset_sha256
            lines.append(_line(row, last.get(kind)))
            last[kind] = row
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


_HEADER = (
    f"{'started (UTC)':<17}{'preprocess':<12}{'images':>7}{'top-1':>8}{'change':>8}{'top-5':>8}"
    f"{'change':>8}{'img/s':>8}  {'verdict':<13}run"
)


def _line(row: Row, before: Row | None) -> str:
    from datetime import UTC

    from eval.measure.metrics import percent

    figures = ""
    for k in (1, 5):
        change = ""
        if before:
            star = " " if row.weights_sha256 == before.weights_sha256 else "*"
            change = f"{row.correct(k) - before.correct(k):+,}{star}"
        figures += f"{percent(row.correct(k), row.images):>8.3f}{change:>8}"
    rate = row.cells["images_per_second"]
    speed = f"{float(rate):.1f}" if rate else ""
    return (
        f"{row.started_at.astimezone(UTC):%Y-%m-%d %H:%M} {row.preprocess:<12}{row.images:>7,}"
        f"{figures}{speed:>8}  {row.verdict:<13}{row.run_id}"
    )


def plot(series: Series, path: Path) -> None:
    """Draw top-1 over time: a panel per variant, a line per form, preprocessing and images.

    Args:
        series: what `read_history` gives.
        path: where to, ``.png`` or ``.svg``.

    Raises:
        UsageError: the format is unknown, or it cannot be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {path}: name a .png or .svg file.")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(variant for variant, _ in series))
    figure = Figure(figsize=(9, 0.5 + 2.8 * len(variants)), layout="constrained")
    panels = figure.subplots(len(variants), squeeze=False, sharex=True)[:, 0]
    for variant, panel in zip(variants, panels, strict=True):
        _draw(panel, variant, [row for (name, _), rows in series.items() for row in rows
                               if name == variant])  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.fonttype": "none"}):  # text stays text
            figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _draw(panel: Axes, variant: str, rows: Sequence[Row]) -> None:
    """Draw the runs of a variant, oldest first; those on other images are another line."""
    from eval.measure.metrics import percent

    lines: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.form, row.preprocess, row.dataset_sha256), []).append(row)
    for number, ((form, preprocess, _), line) in enumerate(lines.items()):
        panel.plot(
            [row.started_at.timestamp() / 86400 for row in line],  # matplotlib's dates
            [percent(row.top1_correct, row.images) for row in line],
            marker="o",
            markersize=max(3, 8 - 2 * number),  # forms mostly agree: let each be seen
            label=f"{form}, {preprocess}, {line[0].images:,} images",
        )
    for reference in sorted({row.cells["reference_top1"] for row in rows} - {""}):
        panel.axhline(float(reference), linestyle="--", color="grey", label=f"reported {reference}")
    panel.xaxis_date()
    panel.set(title=variant, ylabel="top-1, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("history"),
        description="The runs that --history collected, by variant and form.",
        epilog="change: in images, from the run before it on the same images with the same "
        "preprocessing; * marks other weights. Exit codes: 0, or 2 if it cannot be read.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the history")
    add("--add", type=Path, metavar="RESULT", help="first add a result folder or summary.csv")
    add("--variant", metavar="V", help="only this variant")
    add("--form", metavar="F", help="only this form")
    add("--plot", type=Path, metavar="IMAGE", help="also draw top-1 over time: .png or .svg")
    return parser


if __name__ == "__main__":
    sys.exit(main())
