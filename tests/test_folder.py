"""The output folder: one run at a time, and never the result of another run as one's own."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
from pathlib import Path

import pytest
from filelock import FileLock
from small_evaluations import evaluation_of, random_measurement

from eval import files
from eval.errors import UsageError
from eval.measure.latency import LatencyRow
from eval.results import folder as folder_module
from eval.results import folder as write
from eval.results.evaluation import Evaluation
from eval.results.folder import OutputFolder, set_aside, unwritable, write_reports
from eval.results.schema import RESULT_FILES

# What a result may consist of; the contract's names.
NAMES = [
    "summary.csv", "run.json", "report.html", "predictions.csv", "per_class.csv", "confusions.csv",
    "bad_images.csv", "latency.csv", "console.txt", "diagnosis.html", "regression.md",
    "regression.csv", "regression_flips.csv", "regression_classes.csv", "junit.xml",
]  # fmt: skip


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    monkeypatch.setattr("eval.results.html.html_report", lambda made: f"page of {made.data}\n")
    return evaluation_of(random_measurement(3))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESULT_FILES:
        (folder / name).write_text(f"{text} {name}")
    return folder


# An earlier result


def test_every_file_of_an_earlier_result_is_moved(tmp_path: Path) -> None:
    assert list(RESULT_FILES) == NAMES
    full(tmp_path, "old")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "journal").mkdir()
    assert set_aside(tmp_path) is True
    assert names_in(tmp_path) == ["journal", "notes.txt", "previous"]
    assert names_in(tmp_path / "previous") == sorted(NAMES)
    assert (tmp_path / "previous" / "summary.csv").read_text() == "old summary.csv"


def test_nothing_to_move(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "run.json").mkdir()  # a folder is no report
    assert set_aside(tmp_path) is False
    assert names_in(tmp_path) == ["notes.txt", "run.json"]


def test_only_the_last_result_is_kept_and_whole(tmp_path: Path) -> None:
    """No file of the run before last may stand beside those of the last one."""
    full(tmp_path / "previous", "oldest")
    (tmp_path / "previous" / "notes.txt").write_text("mine")
    (tmp_path / "summary.csv").write_text("old")
    assert set_aside(tmp_path) is True
    assert names_in(tmp_path / "previous") == ["notes.txt", "summary.csv"]
    assert (tmp_path / "previous" / "summary.csv").read_text() == "old"


def test_the_summary_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever interrupts the move, no verdict stands in a folder that lost its other files."""
    full(tmp_path, "old")
    moved = []
    monkeypatch.setattr(Path, "replace", lambda self, _: moved.append(self.name))
    set_aside(tmp_path)
    assert moved == NAMES


# The lock


def test_a_new_folder_is_made_when_it_is_claimed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    with OutputFolder(path) as folder:
        assert not path.exists()
        folder.claim()
        assert names_in(path) == [".lock"]
        owner = (path / ".lock").read_text()
        assert owner == f"process {os.getpid()} on {socket.gethostname()}\n"
        folder.claim()  # twice is once
        assert (folder.path, folder.note) == (path, "")
    assert names_in(path) == []


def test_an_existing_folder_is_claimed_at_once(tmp_path: Path) -> None:
    full(tmp_path, "old")
    with OutputFolder(tmp_path) as folder:
        assert names_in(tmp_path) == [".lock", "previous"]
        assert folder.note == f"{tmp_path}: moved the earlier result to {tmp_path / 'previous'}"
        (tmp_path / "summary.csv").write_text("new")
        folder.claim()  # not once more: this would move the run's own files
        assert names_in(tmp_path) == [".lock", "previous", "summary.csv"]
    assert names_in(tmp_path) == ["previous", "summary.csv"]


def test_no_folder_and_other_processes_claim_nothing(tmp_path: Path) -> None:
    with OutputFolder(None) as nothing:
        nothing.claim()
        assert (nothing.path, nothing.note) == (None, "")
    full(tmp_path / "out", "old")
    with OutputFolder(tmp_path / "out", is_first=False) as other:
        other.claim()
        assert names_in(tmp_path / "out") == sorted(NAMES)
    assert names_in(tmp_path / "out") == sorted(NAMES)


def test_two_runs_cannot_use_one_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path), pytest.raises(UsageError) as caught:
        OutputFolder(tmp_path).claim()
    assert str(caught.value) == (
        f"{tmp_path} is in use by another run (process {os.getpid()} on {socket.gethostname()}).\n"
        "Wait for it, or name another folder with --output."
    )
    with OutputFolder(tmp_path) as third:  # the first has ended
        assert third.note == ""


def test_the_refused_run_leaves_the_other_one_alone(tmp_path: Path) -> None:
    with OutputFolder(tmp_path):
        (tmp_path / "summary.csv").write_text("of the first")
        refused = OutputFolder(tmp_path)
        with pytest.raises(UsageError), refused:
            pass
        refused.__exit__(None, None, None)
        assert names_in(tmp_path) == [".lock", "summary.csv"]
        with pytest.raises(UsageError, match="is in use by another run"):
            OutputFolder(tmp_path).claim()


@pytest.mark.parametrize(
    ("content", "owner"),
    [(b"", "another process"), (b"\xff", "another process"), (b"x" * 101, "another process"),
     ("process 12 on büro\n".encode(), "process 12 on büro")],
)  # fmt: skip
def test_an_owner_that_is_not_known(tmp_path: Path, content: bytes, owner: str) -> None:
    with FileLock(tmp_path / ".lock"):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(UsageError) as caught:
            OutputFolder(tmp_path).claim()
    assert f"is in use by another run ({owner}).\n" in str(caught.value)


def test_a_lock_is_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    class Lock(FileLock):
        def acquire(self, timeout: float = -1, **_: object) -> None:
            timeouts.append(timeout)
            super().acquire(timeout=timeout)

    monkeypatch.setattr(files, "FileLock", Lock)
    with OutputFolder(tmp_path):
        assert timeouts == [0]


def test_the_owner_is_utf8_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    monkeypatch.setattr("socket.gethostname", lambda: "büro")
    with OutputFolder(tmp_path), pytest.raises(UsageError, match=r"\(process [0-9]+ on büro\)"):
        OutputFolder(tmp_path).claim()


def test_a_folder_can_be_used_again(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    for _ in range(2):
        with folder:
            assert names_in(tmp_path) == [".lock"]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["report.html", "junit.xml"])
def test_a_folder_in_the_place_of_a_report(tmp_path: Path, name: str) -> None:
    full(tmp_path, "old")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError) as caught, OutputFolder(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path / name} is a folder, but a report needs that name.\n"
        "Move it away, or name another folder with --output."
    )
    assert names_in(tmp_path) == sorted(NAMES), "nothing was moved, and the lock is free again"


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError) as caught, OutputFolder(tmp_path / "out"):
        pass
    assert str(caught.value) == (
        f"--output {tmp_path / 'out'} is a file.\nName a folder; it need not exist yet."
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as caught:
        OutputFolder(tmp_path / "file" / "out").claim()
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'out'} cannot be written: Not a directory.\n"
        "Free some space, or name another folder with --output."
    )


def test_an_error_without_a_name_is_one_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder_module, "set_aside", fails)
    with pytest.raises(UsageError) as caught, OutputFolder(tmp_path):
        pass
    assert str(caught.value).startswith(f"{tmp_path} cannot be written: Input/output error.\n")
    assert names_in(tmp_path) == []


def test_a_lock_file_that_cannot_be_removed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with OutputFolder(tmp_path), monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        folder = OutputFolder(tmp_path)
        folder.__exit__(None, None, None)
    folder = OutputFolder(tmp_path)
    folder.claim()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        folder.__exit__(None, None, None)
    assert names_in(tmp_path) == [".lock"]
    with OutputFolder(tmp_path):  # it is free, although its files are there
        pass
    assert names_in(tmp_path) == []


def test_lock_files_that_are_gone_are_no_error(tmp_path: Path) -> None:
    with OutputFolder(tmp_path):
        (tmp_path / ".lock").unlink()
    assert names_in(tmp_path) == []


# Writing


def test_a_result_in_full(
    tmp_path: Path, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "linesep", "\r\n")  # the files are the same on every system
    write_reports(tmp_path / "new" / "out", evaluation)
    out = tmp_path / "new" / "out"
    assert names_in(out) == [
        "confusions.csv", "per_class.csv", "predictions.csv", "report.html", "run.json",
        "summary.csv",
    ]  # fmt: skip
    assert (out / "report.html").read_text() == "page of /data/val\n"
    for name, table in (("summary", evaluation.summary), ("per_class", evaluation.per_class)):
        lines = (out / f"{name}.csv").read_bytes().decode().split("\n")
        assert lines[0] == ",".join(table.columns)
        assert len(lines) == len(table) + 2
        assert lines[-1] == ""
    text = (out / "run.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert json.loads(text)["run_id"] == "base-20260101T000000Z"


def test_probabilities_have_six_digits(tmp_path: Path, evaluation: Evaluation) -> None:
    evaluation.measured.scores["unfused"].prob[0] = (0.123456789, 0.1, 0.00001, 0.0, 0.0)
    write_reports(tmp_path, evaluation)
    first = (tmp_path / "predictions.csv").read_text().split("\n")[1]
    assert ",0.123457,0.1,1e-05,0,0," in first


def test_bad_images_have_a_file_where_there_are_any(tmp_path: Path, evaluation: Evaluation) -> None:
    evaluation.measured.bad[1] = "truncated"
    write_reports(tmp_path, evaluation)
    rows = (tmp_path / "bad_images.csv").read_text().split("\n")
    assert len(rows) == 3
    assert rows[1].endswith("truncated")


def test_latencies_have_a_file_where_they_were_measured(
    tmp_path: Path, evaluation: Evaluation
) -> None:
    row = LatencyRow("unfused", 1, 1, "model", 1.5, 2.0, 3.25, 100)
    write_reports(tmp_path, dataclasses.replace(evaluation, latency=(row,)))
    assert (tmp_path / "latency.csv").read_text() == (
        "form,threads,batch,stage,median_ms,p90_ms,p99_ms,images\n"
        "unfused,1,1,model,1.5,2.0,3.25,100\n"
    )
    assert (tmp_path / "summary.csv").is_file()


def test_an_earlier_result_is_not_mixed_with_the_new_one(
    tmp_path: Path, evaluation: Evaluation
) -> None:
    full(tmp_path, "old")
    write_reports(tmp_path, evaluation)
    assert names_in(tmp_path) == [
        "confusions.csv", "per_class.csv", "predictions.csv", "previous", "report.html",
        "run.json", "summary.csv",
    ]  # fmt: skip
    assert names_in(tmp_path / "previous") == sorted(NAMES)
    assert not (tmp_path / "summary.csv").read_text().startswith("old")


def test_names_that_are_not_text_are_written_as_escapes(tmp_path: Path) -> None:
    write._write_together(tmp_path, {"x": f"é {os.fsdecode(b'caf' + bytes([0xE9]))}\r\n"})
    assert (tmp_path / "x").read_bytes() == b"\xc3\xa9 caf\\udce9\r\n"
    assert names_in(tmp_path) == ["x"]


def test_the_summary_appears_last(
    tmp_path: Path, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing before everything is on the disk."""
    evaluation.measured.bad[1] = "truncated"
    steps: list[str] = []
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        steps.append(target.name)
        assert self.parent.parent == target.parent == tmp_path
        assert self.parent.name.startswith(".reports-")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(os, "fsync", lambda _: steps.append("sync"))
    write_reports(tmp_path, evaluation)
    assert steps == [
        *["sync"] * 7,
        "bad_images.csv", "predictions.csv", "per_class.csv", "confusions.csv", "report.html",
        "run.json", "summary.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("call", range(1, 7))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_whatever_fails_leaves_no_part_of_a_result(
    tmp_path: Path,
    evaluation: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    call: int,
) -> None:
    owner = os if step == "fsync" else Path
    original, calls = getattr(owner, step), []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args)

    monkeypatch.setattr(owner, step, failing)
    kind = UsageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind) as caught:
        write_reports(tmp_path, evaluation)
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"{tmp_path} cannot be written: No space left.\n"
            "Free some space, or name another folder with --output."
        )
    assert names_in(tmp_path) == []


def test_what_cannot_be_taken_back_does_not_hide_the_error(
    tmp_path: Path, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file cannot be moved, and the first not be removed: the first error counts."""
    replace = Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        if self.name == "per_class.csv":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", second_fails)
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(write, "set_aside", lambda _: False)
    with pytest.raises(UsageError, match="cannot be written: "):
        write_reports(tmp_path, evaluation)


def test_a_folder_in_the_way_of_a_report(tmp_path: Path, evaluation: Evaluation) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UsageError) as caught:
        write_reports(tmp_path, evaluation)
    assert str(caught.value) == (
        f"{tmp_path / 'run.json'} cannot be written: it is a folder.\n"
        "Free some space, or name another folder with --output."
    )
    assert names_in(tmp_path) == ["run.json"]


def test_errors_name_what_could_not_be_written() -> None:
    path = Path("/out")
    named = unwritable(path, OSError(errno.EIO, "Input/output error", "/out/x"))
    assert str(named).startswith("/out/x cannot be written: Input/output error.\n")
    assert str(unwritable(path, OSError("gone"))).startswith("/out cannot be written: gone.\n")


def test_run_json_shows_paths_as_text(evaluation: Evaluation) -> None:
    provenance = dataclasses.replace(evaluation.provenance, request={"data": Path("/my val")})
    document = json.loads(write.run_json(dataclasses.replace(evaluation, provenance=provenance)))
    assert document["request"]["data"] == "/my val"


def test_run_json_has_no_numbers_that_json_lacks(evaluation: Evaluation) -> None:
    evaluation.measured.seconds = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write.run_json(evaluation)
