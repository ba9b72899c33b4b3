"""The journal: what is kept, what is thrown away, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.errors import UsageError
from eval.measure.journal import Journal, NoJournal, Records, record_dtype

FORMS = ["a", "b"]
IDENTITY = {"weights": "1234", "images": 10}


def records(*indices: int) -> Records:
    rows = np.zeros(len(indices), record_dtype(FORMS))
    rows["index"] = indices
    rows["a"]["prob"] = np.pi
    rows["b"]["rank"] = 7
    return rows


def journal(folder: Path, process: int = 0, **changes: object) -> Journal:
    return Journal(folder, IDENTITY | changes, FORMS, process)


def test_keeps_what_was_appended(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        assert len(first.read(10)) == 0
        first.append(records(4, 5))
        first.append(records(0))
    with journal(tmp_path) as again:
        found = again.read(10)
        assert found["index"].tolist() == [0, 4, 5]
        assert (found["a"]["prob"] == np.pi).all()
        assert (found["b"]["rank"] == 7).all()


def test_processes_write_apart_and_read_all(tmp_path: Path) -> None:
    with journal(tmp_path, 0) as one, journal(tmp_path, 1) as two:
        one.append(records(0, 2))
        two.append(records(1, 2))
    with journal(tmp_path, 2) as three:
        assert three.read(10)["index"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 100, 300])
def test_a_record_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    with journal(tmp_path) as first:
        first.append(records(0, 1))
    path = tmp_path / "journal" / "0.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with journal(tmp_path) as again:
        assert again.read(10)["index"].tolist() == [0]
        again.append(records(1, 2))
        assert again.read(10)["index"].tolist() == [0, 1, 2], "what follows is not shifted"


def test_a_damaged_record_is_dropped(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(records(0, 1, 2))
    path = tmp_path / "journal" / "0.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with journal(tmp_path) as again:
        assert again.read(10)["index"].tolist() == [0, 2]


@pytest.mark.parametrize(("key", "value"), [("weights", "5678"), ("images", 11)])
def test_another_run_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with journal(tmp_path) as first:
        first.append(records(0))
    with pytest.raises(UsageError, match=f"{key} was {IDENTITY[key]}, is {value}"):
        journal(tmp_path, **{key: value})


def test_damaged_identity_is_refused(tmp_path: Path) -> None:
    with journal(tmp_path):
        pass
    (tmp_path / "journal" / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"Delete .* to start over"):
        journal(tmp_path)


def test_remove(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(records(0))
        first.remove()
    assert not (tmp_path / "journal").exists()
    with journal(tmp_path, weights="5678") as other:
        assert len(other.read(10)) == 0


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with journal(tmp_path) as first:
        first.append(records(0))
        monkeypatch.setattr("os.write", full)
        with pytest.raises(UsageError, match=r"No space left on device\.\nFree some space"):
            first.append(records(1))
        monkeypatch.undo()
        assert first.read(10)["index"].tolist() == [0]


def test_layout_of_a_record() -> None:
    """Another layout has another code, and a run is only continued by the code that began it."""
    dtype = record_dtype(["a"])
    assert dtype.names == ("index", "sha256", "reason", "logit_diff", "largest_logit", "a")
    assert [dtype[name].str for name in dtype.names[:5]] == ["<i8", "|V32", "|S160", "<f8", "<f8"]
    assert dtype["sha256"].base == np.uint8
    assert dtype["a"].names == ("rank", "top", "prob", "nll", "tied")
    assert dtype["a"]["top"] == np.dtype(("<i8", 5))
    assert dtype["a"]["prob"] == np.dtype(("<f8", 5))
    assert (dtype["a"]["rank"], dtype["a"]["nll"]) == (np.dtype("<i8"), np.dtype("<f8"))
    assert dtype.itemsize == 8 + 32 + 160 + 8 + 8 + (8 + 40 + 40 + 8 + 1)


def test_files_of_a_journal(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with journal(tmp_path, letter="é") as first, journal(tmp_path, 3, letter="é") as second:
            first.append(records(1))
            second.append(records(2, 3))
    finally:
        os.umask(before)
    folder = tmp_path / "journal"
    assert sorted(path.name for path in folder.iterdir()) == ["0.bin", "3.bin", "run.json"]
    text = '{\n  "weights": "1234",\n  "images": 10,\n  "letter": "\\u00e9"\n}\n'
    assert (folder / "run.json").read_bytes() == text.encode()
    size = record_dtype(FORMS).itemsize + 4
    assert [(folder / f"{i}.bin").stat().st_size for i in (0, 3)] == [size, 2 * size]
    assert stat.S_IMODE((folder / "0.bin").stat().st_mode) == 0o644
    with Journal(tmp_path, IDENTITY | {"letter": "é"}, FORMS) as zero:  # process 0 by default
        zero.append(records(4))
    assert (folder / "0.bin").stat().st_size == 2 * size


def test_the_file_is_closed_at_the_end(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        handle = first._file
        os.fstat(handle)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_only_images_of_the_set_count(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(records(-1, 0, 9, 10, 11))
        assert first.read(10)["index"].tolist() == [0, 9]
        assert first.read(11)["index"].tolist() == [0, 9, 10]
        assert first.read(0)["index"].tolist() == []


def test_the_first_record_of_an_image_counts(tmp_path: Path) -> None:
    again = records(5, 4)
    again["logit_diff"] = 1.0
    with journal(tmp_path, 0) as one, journal(tmp_path, 1) as two:
        two.append(again)
        one.append(records(5))
        found = one.read(10)
    assert found["index"].tolist() == [4, 5]
    assert found["logit_diff"].tolist() == [1.0, 0.0]


def test_a_write_may_take_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is nearly full writes less than it was given."""
    write = os.write
    with journal(tmp_path) as first, monkeypatch.context() as patch:
        patch.setattr("os.write", lambda handle, data: write(handle, data[:100]))
        first.append(records(3, 1, 2))
        found = first.read(10)
    assert found["index"].tolist() == [1, 2, 3]
    assert (found["a"]["prob"] == np.pi).all()


def test_settings_that_json_changes_are_still_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        with journal(tmp_path, share=(0, 2), sizes={1: 2}):
            pass


def test_a_run_that_kept_nothing_does_not_hold_the_folder(tmp_path: Path) -> None:
    """Its model was damaged, say; the intact one has another hash."""
    with journal(tmp_path):
        pass
    with journal(tmp_path, weights="5678") as second:
        second.append(records(3))
    with journal(tmp_path, weights="5678") as again:
        assert again.read(10)["index"].tolist() == [3]
    with pytest.raises(UsageError, match="weights was 5678, is 1234"):
        journal(tmp_path)


def test_what_any_process_has_kept_holds_the_folder(tmp_path: Path) -> None:
    with journal(tmp_path, 0), journal(tmp_path, 1) as other:
        other.append(records(1))
    with pytest.raises(UsageError, match="weights was 1234, is 5678"):
        journal(tmp_path, weights="5678")


@pytest.mark.parametrize("content", ["[]", '"x"', "3", "null"])
def test_an_identity_of_another_kind_is_another_run(tmp_path: Path, content: str) -> None:
    with journal(tmp_path) as first:
        first.append(records(0))
    (tmp_path / "journal" / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"weights was None, is 1234; images was None, is 10\."):
        journal(tmp_path)


def test_refusals_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "journal"
    with journal(tmp_path) as first:
        first.append(records(0))
    with pytest.raises(UsageError) as caught:
        journal(tmp_path, weights="5678", images=9)
    assert str(caught.value) == (
        f"{tmp_path} contains an unfinished run with other settings: weights was 1234, is 5678; "
        f"images was 10, is 9.\nUse another --output, or delete {folder} to start over."
    )
    (folder / "run.json").write_bytes(b"\xff")
    with pytest.raises(UsageError) as caught:
        journal(tmp_path)
    assert str(caught.value).startswith(f"{folder / 'run.json'} cannot be read ('utf-8' codec")
    assert str(caught.value).endswith(f").\nDelete {folder} to start over.")


def test_an_identity_is_utf8_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal(tmp_path, letter="é"):
        pass
    path = tmp_path / "journal" / "run.json"
    path.write_bytes(path.read_bytes().replace(b"\\u00e9", "é".encode()))  # by hand, for instance
    read_text = Path.read_text

    def read(self: Path, encoding: str | None = None, **more: Any) -> str:
        return read_text(self, encoding or "latin-1", **more)  # as on another system

    monkeypatch.setattr(Path, "read_text", read)
    with journal(tmp_path, letter="é"):
        pass


def test_what_cannot_be_opened_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "journal"
    (folder / "0.bin").mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        journal(tmp_path)
    assert str(caught.value) == f"{folder / '0.bin'} cannot be written: Is a directory."
    with journal(tmp_path, 1) as other, pytest.raises(UsageError) as caught:
        other.read(10)
    assert str(caught.value) == (
        f"{folder / '0.bin'} cannot be read: Is a directory.\nDelete {folder} to start over."
    )

    def broken(_: Path) -> bytes:
        raise OSError("the share is gone")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with journal(tmp_path, 1) as other, pytest.raises(UsageError, match="read: the share is gone"):
        other.read(10)


def test_a_full_disk_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with journal(tmp_path) as first:
        monkeypatch.setattr("os.write", full)
        with pytest.raises(UsageError) as caught:
            first.append(records(1))
    assert str(caught.value) == (
        f"{tmp_path / 'journal' / '0.bin'} cannot be written: No space left on device.\n"
        "Free some space and run the same command again: it continues this run."
    )


def test_removing_twice_and_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal(tmp_path) as first:
        first.remove()
        first.remove()

    def refuse(_: Path) -> None:
        raise OSError(39, "Directory not empty")

    def broken(_: Path) -> None:
        raise OSError("the share is gone")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(UsageError) as caught:
        first.remove()
    assert str(caught.value) == (
        f"{tmp_path / 'journal'} cannot be removed: Directory not empty.\n"
        "Delete it; the reports of the run are complete."
    )
    monkeypatch.setattr("shutil.rmtree", broken)
    with pytest.raises(UsageError, match="removed: the share is gone"):
        first.remove()


def test_records_without_an_identity_belong_to_nobody(tmp_path: Path) -> None:
    """Where run.json is lost, records count only for the run that wrote them."""
    with journal(tmp_path, weights="1", images=10) as first:
        first.append(records(0, 1))
    (tmp_path / "journal" / "run.json").unlink()
    with journal(tmp_path, weights="2") as other:
        assert len(other.read(10)) == 0
    (tmp_path / "journal" / "run.json").unlink()
    with Journal(tmp_path, {"images": 10, "weights": "1"}, FORMS) as same:  # in another order
        assert same.read(10)["index"].tolist() == [0, 1]


def test_a_run_without_an_output_keeps_nothing() -> None:
    with NoJournal(FORMS) as nothing:
        nothing.append(records(1))
        found = nothing.read(10)
        nothing.remove()
    assert len(found) == 0
    assert found.dtype == record_dtype(FORMS)


def test_a_record_that_another_process_did_not_finish_is_dropped(tmp_path: Path) -> None:
    """Only its own process may cut a file; the others read what is whole."""
    with journal(tmp_path, 1) as other:
        other.append(records(3, 4))
    path = tmp_path / "journal" / "1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    size = path.stat().st_size
    with journal(tmp_path) as first:
        assert first.read(10)["index"].tolist() == [3]
    assert path.stat().st_size == size


def test_a_journal_that_is_gone_has_no_records(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(records(1))
        first.remove()
        found = first.read(10)
    assert len(found) == 0
    assert found.dtype == record_dtype(FORMS)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "out" / "journal").mkdir(parents=True)
    (tmp_path / "out" / "journal" / "0.bin").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="cannot be written"):
        Journal(tmp_path / "out", {}, ("a",))
    assert (tmp_path / "mine").read_bytes() == b"mine"
