"""Histories: no row is lost or mixed, whoever writes or dies; and the trend that is read off."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import HANG
from small_evaluations import evaluation_of, random_measurement
from small_results import HEADER, ranks, sha256, summary_row, write_rows

from eval import files, history
from eval.errors import UsageError
from eval.results.folder import OutputFolder, csv_text
from eval.results.history import append_history, check_history, read_history, trend
from eval.results.read import read_rows


def run_ids(path: Path) -> list[str]:
    return [row.run_id for row in read_rows(path)]


def summary(folder: Path, run_id: str, **cells: object) -> Path:
    return write_rows(folder / f"{run_id}.csv", [summary_row(ranks(60), run_id=run_id, **cells)])


def test_rows_are_kept_word_for_word(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.csv"
    rows = [summary_row(ranks(60), form) for form in ("unfused", "reparameterized")]
    source = write_rows(tmp_path / "summary.csv", rows)
    append_history(path, source)
    added = ["balanced_accuracy,macro_precision,macro_f1", ",,", ",,"]  # the source has none
    lines = [",".join(line) for line in zip(source.read_text().splitlines(), added, strict=True)]
    assert path.read_text().splitlines() == lines
    append_history(path, summary(tmp_path, "second"))
    assert path.read_text().splitlines()[:3] == lines
    assert run_ids(path) == ["base-1", "base-1", "second"]
    assert sum(line.startswith("run_id") for line in lines) == 1


def test_a_result_can_be_added_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.csv"
    write_rows(tmp_path / "run" / "summary.csv", [summary_row(ranks(60), run_id="folder")])
    assert history.main([str(path), "--add", str(tmp_path / "run")]) == 0
    assert history.main([str(path), "--add", str(summary(tmp_path, "file"))]) == 0
    assert run_ids(path) == ["folder", "file"]
    assert "base, unfused, torchvision: 2 runs" in capsys.readouterr().out
    assert history.main([str(path), "--add", str(tmp_path)]) == 2
    assert f"{tmp_path / 'summary.csv'}: there is no such file" in capsys.readouterr().err


def test_concurrent_writers_lose_and_mix_nothing(tmp_path: Path) -> None:
    """8 processes add 25 runs of two rows each to a file that none of them has seen before."""
    code = """
import sys, time
from pathlib import Path
from eval import files
from eval.results.history import append_history
files.PATIENCE = 600
folder, writer = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready{writer}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
for number in range(25):
    append_history(folder / "history.csv", folder / writer / f"{writer}-{number}.csv")
"""
    for writer in range(8):
        for number in range(25):
            run = f"{writer}-{number}"
            rows = [summary_row(ranks(60), form, run_id=run, command="x" * 3000) for form in "uf"]
            write_rows(tmp_path / str(writer) / f"{run}.csv", rows)
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(writer)]) for writer in range(8)]
    while len(list(tmp_path.glob("ready*"))) < 8:
        assert all(writer.poll() is None for writer in writers)
    (tmp_path / "go").touch()
    assert [writer.wait(timeout=HANG) for writer in writers] == [0] * 8

    found = [(row.run_id, row.form) for row in read_rows(tmp_path / "history.csv")]
    assert len(found) == 400
    expected = [(f"{writer}-{number}", form)
                for writer in range(8) for number in range(25) for form in "uf"]  # fmt: skip
    assert sorted(found) == sorted(expected)
    for writer in range(8):  # each in its own order, both rows of a run side by side
        assert [row for row in found if row[0].startswith(f"{writer}-")] == [
            row for row in expected if row[0].startswith(f"{writer}-")
        ]
    assert all(found[i][0] == found[i + 1][0] for i in range(0, 400, 2))
    assert (tmp_path / "history.csv").read_text().count("run_id") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX")
@pytest.mark.parametrize("step", ["os.fsync", "Path.replace"])
def test_a_killed_writer_leaves_no_lock_and_the_old_file(tmp_path: Path, step: str) -> None:
    path = tmp_path / "history.csv"
    append_history(path, summary(tmp_path, "first"))
    before = path.read_bytes()
    code = f"""
import os, signal, sys
from pathlib import Path
from eval.results.history import append_history
{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
append_history(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    words = [sys.executable, "-c", code, str(path), str(summary(tmp_path, "second"))]
    killed = subprocess.run(words, timeout=HANG, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    append_history(path, summary(tmp_path, "third"))
    assert run_ids(path) == ["first", "third"]


def test_a_history_that_is_empty_or_a_link_is_continued(tmp_path: Path) -> None:
    path, link = tmp_path / "history.csv", tmp_path / "link.csv"
    path.touch(0o664)
    path.chmod(0o664)
    link.symlink_to(path)
    append_history(link, summary(tmp_path, "first"))
    append_history(path, summary(tmp_path, "second"))
    assert link.is_symlink()
    assert run_ids(link) == ["first", "second"]
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_history_of_an_earlier_version_gets_the_new_columns(tmp_path: Path) -> None:
    """Its rows stay, with nothing in them; a quoted cell may hold a comma."""
    path = write_rows(tmp_path / "history.csv", [summary_row(ranks(60), run_id="old")])
    before = read_rows(path)[0].cells
    made = evaluation_of(random_measurement(30))
    with OutputFolder(tmp_path / "out") as folder:
        folder.write("summary.csv", csv_text(made.summary))
    append_history(path, tmp_path / "out")
    old, *new = read_rows(path)
    assert old.cells == before
    assert old.cells["command"] == 'python -m eval.imagenet --data "a, b"'
    assert [row.cells["balanced_accuracy"] for row in new] == [
        str(value) for value in made.summary["balanced_accuracy"]
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("date,top1\n2026,77.04\n", "has other columns"),
        (",".join(HEADER[:-1]) + "\n", "has other columns"),
        (",".join([*HEADER, "note"]) + "\n", "has other columns"),
        ("a letter to nobody", "is cut off"),
        ("a letter\nof two lines\n", "has other columns"),
        ("\n" * 3, "is empty: a header and rows are needed"),
        (",".join(HEADER) + '\n"a\nb\n', "line 3 is not CSV .unexpected end of data"),
        (",".join(HEADER) + "\n1,2\n", "row 1 has 2 of 39 columns"),
        (",".join(HEADER), "is cut off"),
    ],
)
def test_a_file_that_is_no_history_is_left_alone(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "history.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        append_history(path, summary(tmp_path, "next"))
    assert str(path) in str(caught.value)
    assert path.read_text() == content


def test_a_history_that_a_spreadsheet_has_saved_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    saved = summary(tmp_path, "first").read_text().replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + saved.encode())
    append_history(path, summary(tmp_path, "next"))
    assert run_ids(path) == ["first", "next"]


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    source = summary(tmp_path, "next")
    for path in (tmp_path, source / "history.csv"):
        with pytest.raises(UsageError, match="cannot be written"):
            append_history(path, source)
    with pytest.raises(UsageError, match="no such file"):
        append_history(tmp_path / "history.csv", tmp_path / "nothing.csv")
    assert not (tmp_path / "history.csv").exists()


# --- The trend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four runs of base, of which one is on other images and one with other weights; and small."""

    def row(day: int, right: int, **cells: object) -> dict[str, object]:
        started = f"2026-01-{day:02d}T01:00:00+02:00"
        return summary_row(ranks(right), started_at=started, run_id=f"r{day}", **cells)

    other = summary_row(ranks(50), "fused", run_id="r9", started_at="2026-01-09T00:00:00+00:00",
                        images_per_second="")  # fmt: skip
    return write_rows(
        tmp_path / "history.csv",
        [
            row(3, 63, weights_sha256=sha256("new")),
            row(1, 60),
            row(2, 90, dataset_sha256=sha256("others")),
            row(4, 61, weights_sha256=sha256("new")),
            row(5, 40, variant="small"),
            other,
        ],
    )


TREND = """\
base, unfused, torchvision: 4 runs
started (UTC)    run images   top-1  change   top-5  change   img/s  verdict
2025-12-31 23:00 r1     100  60.000          70.000            15.9  PARTIAL
2026-01-01 23:00 r2     100  90.000         100.000            15.9  PARTIAL
2026-01-02 23:00 r3     100  63.000     +3*  73.000     +3*    15.9  PARTIAL
2026-01-03 23:00 r4     100  61.000     -2   71.000     -2     15.9  PARTIAL

base, fused, torchvision: 1 run
started (UTC)    run images   top-1  change   top-5  change   img/s  verdict
2026-01-09 00:00 r9     100  50.000          60.000                  PARTIAL
"""


def test_the_trend_by_hand(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert history.main([str(path), "--variant", "base"]) == 0
    assert capsys.readouterr().out == TREND


def test_our_own_run_ids_fit_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ids begin with the variant, and a table has 80 columns; preprocessings are apart."""
    rows = [
        summary_row(
            ranks(60 + day),
            variant="base_ssld",
            preprocess=preprocess,
            run_id=f"base_ssld-2026010{day}T020304Z",
            started_at=f"2026-01-0{day}T02:03:04+00:00",
        )
        for day, preprocess in ((1, "torchvision"), (2, "paddle"), (3, "torchvision"))
    ]
    path = write_rows(tmp_path / "history.csv", rows)
    assert history.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert (
        told
        == """\
base_ssld, unfused, torchvision: 2 runs
base_ssld-...    images   top-1  change   top-5  change   img/s  verdict
20260101T020304Z    100  61.000          71.000            15.9  PARTIAL
20260103T020304Z    100  63.000     +2   73.000     +2     15.9  PARTIAL

base_ssld, unfused, paddle: 1 run
base_ssld-...    images   top-1  change   top-5  change   img/s  verdict
20260102T020304Z    100  62.000          72.000            15.9  PARTIAL
"""
    )


def test_filters(path: Path) -> None:
    assert list(read_history(path)) == [
        ("base", "unfused"),
        ("small", "unfused"),
        ("base", "fused"),
    ]
    assert list(read_history(path, form="fused")) == [("base", "fused")]
    assert trend(read_history(path, "small")).startswith("small, unfused, torchvision: 1 run\n")
    with pytest.raises(UsageError, match="It has: base unfused, small unfused, base fused"):
        read_history(path, "large")


def test_the_trend_is_drawn(path: Path, tmp_path: Path) -> None:
    assert history.main([str(path), "--plot", str(tmp_path / "new" / "trend.svg")]) == 0
    drawn = (tmp_path / "new" / "trend.svg").read_text()
    for text in ("base", "small", "unfused, torchvision, 100 images", "reported 77.04"):
        assert f">{text}</text>" in drawn
    assert history.main([str(path), "--plot", str(tmp_path / "trend.png")]) == 0
    assert (tmp_path / "trend.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_is_an_error(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "no").touch()
    assert history.main([str(path), "--plot", str(tmp_path / "no" / "trend.svg")]) == 2
    captured = capsys.readouterr()
    assert "be written" in captured.err
    assert "base, unfused, torchvision: 4 runs" in captured.out
    before = path.read_bytes()
    assert history.main([str(path), "--add", str(path), "--plot", "trend.pdf"]) == 2
    assert "--plot trend.pdf: name a .png or .svg file." in capsys.readouterr().err
    assert path.read_bytes() == before  # refused before anything is added


def test_what_cannot_be_read_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert history.main([str(tmp_path / "nothing.csv")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_reader_may_leave_early(path: Path) -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "eval.history", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    assert shown.stderr.read() == b""
    shown.stderr.close()
    assert shown.wait() == 0


# --- Safe to print, safe to draw


HOSTILE = "evil\x1b[2J\nbase, unfused: 9 runs\r\u202e\x07"


def test_no_name_reaches_the_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"run_id": HOSTILE, "variant": f"v{HOSTILE}", "form": f"f{HOSTILE}",
             "preprocess": f"p{HOSTILE}"}  # fmt: skip
    path = write_rows(tmp_path / "history.csv", [summary_row(ranks(60), **names)])
    assert history.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 3
    assert all(sign.isprintable() or sign == "\n" for sign in told)
    assert r"evil\x1b[2J\nbase, unfused: 9 runs\r\u202e\x07" in told
    assert history.main([str(path), "--variant", "other"]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "\x1b" not in told


@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.parametrize("name", ["$x", "cost $5 or $6", r"$\frac$", HOSTILE, "漢字", "_hidden"])
def test_any_name_can_be_drawn(tmp_path: Path, name: str, ending: str) -> None:
    rows = [summary_row(ranks(60), name, variant=name, preprocess=name)]
    path = write_rows(tmp_path / "history.csv", rows)
    plot = tmp_path / f"plot.{ending}"
    assert history.main([str(path), "--plot", str(plot)]) == 0
    assert plot.stat().st_size > 1000
    if ending == "svg" and name.startswith("cost"):
        assert ">cost $5 or $6</text>" in plot.read_text()


def test_too_many_variants_are_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [summary_row(ranks(60), variant=f"v{i}") for i in range(41)]
    path = write_rows(tmp_path / "history.csv", rows)
    assert history.main([str(path), "--plot", str(tmp_path / "plot.png")]) == 2
    assert "at most 40 variants, and there are 41" in capsys.readouterr().err


# --- The lock


HOLD = """
import sys
from pathlib import Path
from eval.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_UNSIGNED = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1] + ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Another process has the lock of `path` until its stdin is closed."""
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


@pytest.mark.parametrize("code", [HOLD, HOLD_UNSIGNED], ids=["signed", "unsigned"])
def test_a_lock_that_somebody_holds_is_named_and_given_up(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
) -> None:
    monkeypatch.setattr(files, "NOTICE", 0.1)
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    path, source = tmp_path / "history.csv", summary(tmp_path, "next")
    with held(path, code) as holder:
        who = (
            f"process {holder.pid} on {socket.gethostname()}" if code == HOLD else "another process"
        )
        assert history.main([str(path), "--add", str(source)]) == 2
        told = capsys.readouterr().err.splitlines()
        assert told == [
            f"{path} is locked by {who}: waiting up to 0.3 s",
            f"error: {path} has been locked by {who} for 0.3 s.",
            f"Nothing was added. Later: python -m eval.history {path} --add {source}",
        ]
        assert not path.exists()
    assert history.main([str(path), "--add", str(source)]) == 0, "it ended with its holder"
    assert run_ids(path) == ["next"]


def test_the_documented_patience() -> None:
    assert (files.NOTICE, files.PATIENCE) == (2, 60)


def test_a_lock_that_becomes_free_in_time_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "NOTICE", 0)
    monkeypatch.setattr(files, "PATIENCE", HANG)
    path, source = tmp_path / "history.csv", summary(tmp_path, "next")
    with held(path) as holder:
        owner = files.Lock.owner

        def asked(lock: files.Lock) -> str:
            """For the notice, and so while the lock is held; then it becomes free."""
            found = owner(lock)
            assert holder.stdin is not None
            holder.stdin.close()
            return found

        monkeypatch.setattr(files.Lock, "owner", asked)
        append_history(path, source)
    assert f"process {holder.pid} on {socket.gethostname()}: waiting" in capsys.readouterr().err
    assert run_ids(path) == ["next"]
    assert (tmp_path / "history.csv.lock").read_text() == "", "nobody holds it any more"


def test_a_lock_file_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text("a letter")
    with files.locked(tmp_path / "x"):
        assert files.Lock(tmp_path / "x.lock").owner() == "another process"
    assert (tmp_path / "x.lock").read_text() == "a letter"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is of POSIX")
def test_ctrl_c_while_waiting_says_what_was_not_done(tmp_path: Path) -> None:
    path, source = tmp_path / "history.csv", summary(tmp_path, "next")
    code = (  # background jobs of a shell ignore SIGINT, and so would their children
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from eval import files; files.NOTICE = 0.1\n"
        "from eval import history; sys.exit(history.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(path), "--add", str(source)]
    with held(path), subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "waiting up to 60 s" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        told = waiting.stderr.read()
        assert waiting.wait(timeout=HANG) == 130
    assert told.splitlines() == [
        f"The result was not added to {path}. Later: python -m eval.history {path} --add {source}",
        "interrupted",
    ]


# --- All rows or none


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("new", [True, False])
def test_a_write_that_fails_leaves_the_history_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], step: str,
    new: bool,
) -> None:  # fmt: skip
    path = tmp_path / "history.csv"
    rows = [summary_row(ranks(60), form, run_id="next") for form in ("unfused", "fused")]
    source = write_rows(tmp_path / "next.csv", rows)
    if not new:
        append_history(path, summary(tmp_path, "first"))
    before = None if new else path.read_bytes()

    def fail(*_: object) -> None:
        raise error("no space")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(UsageError if error is OSError else KeyboardInterrupt):
            append_history(path, source)
    assert (path.read_bytes() if path.exists() else None) == before
    append_history(path, source)
    assert run_ids(path) == [*([] if new else ["first"]), "next", "next"]


# --- Checked before a run


def test_a_history_that_can_be_written_passes_the_check(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.csv"
    check_history(path)
    assert not path.exists()
    append_history(path, summary(tmp_path, "first"))
    before = path.read_bytes()
    check_history(path)
    assert path.read_bytes() == before


def test_a_history_that_cannot_be_written_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "locked.csv.lock").mkdir()
    for name, message in (
        ("folder", "it is a folder. Name a file for the history"),
        ("file/history.csv", "cannot be written"),
        ("other.csv", "has other columns"),
        ("locked.csv", "cannot be written"),
        ("x" * 300, "cannot be written"),
    ):
        with pytest.raises(UsageError, match=message):
            check_history(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be written"):
        check_history(Path("/proc/history.csv"))


def test_a_device_is_no_history(tmp_path: Path) -> None:
    for check in (check_history, lambda path: append_history(path, summary(tmp_path, "x"))):
        with pytest.raises(UsageError, match="it is not a regular file"):
            check(Path("/dev/null"))


# --- Exit codes


def test_a_full_disk_behind_stdout_is_no_crash(path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "eval.history", str(path)], stdout=full,
                              stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "stdout cannot be written" in done.stderr


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError, 70), (KeyboardInterrupt, 130)])
def test_crashes_and_interrupts_have_their_codes(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("eval.results.history.read_history", fail)
    assert history.main([str(path)]) == code


@pytest.mark.parametrize(
    "cells",
    [
        {"started_at": "0001-01-01T00:00:00+14:00"},
        {"images_per_second": "abc"},
        {"reference_top1": "nan"},
        {"verdict": "GOOD"},
    ],
)
def test_damaged_rows_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: dict[str, object]
) -> None:
    path = write_rows(tmp_path / "history.csv", [summary_row(ranks(60), **cells)])
    for options in ((), ("--plot", str(tmp_path / "x.png")), ("--add", str(path))):
        assert history.main([str(path), *options]) == 2
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1
        assert "row 1" in told
