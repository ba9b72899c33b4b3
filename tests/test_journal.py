"""The journal: what is kept, what is thrown away, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.errors import UsageError
from eval.measure.journal import Journal, Records, record_dtype

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
    with journal(tmp_path):
        pass
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
