"""Which process of a run this is: from WORLD_SIZE and RANK together, in one place."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from conftest import FILES, HANG, MakeVal
from tiny_task import tiny_task

from eval import imagenet
from eval.errors import DataError, EvalError, UsageError
from eval.images.valset import open_valset
from eval.measure.engine import Engine
from eval.measure.settings import exact_settings
from eval.processes import Group, own_place, process_group
from eval.progress import Event

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def environment(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words.split())


@pytest.mark.parametrize("words", [
    "", "RANK=1", "RANK=", "RANK=00", "RANK=x", "LOCAL_RANK=7", "WORLD_SIZE=1",
    "WORLD_SIZE=1 RANK=0", "LOCAL_WORLD_SIZE=4", "RANK=3 LOCAL_WORLD_SIZE=4",
])  # fmt: skip
def test_one_process(words: str) -> None:
    place = own_place(environment(words))
    assert place == Group()
    assert place.is_first
    assert place.local_count == 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("WORLD_SIZE=2 RANK=0", Group(0, 2)),
        ("WORLD_SIZE=2 RANK=1 LOCAL_RANK=1", Group(1, 2, 1)),
        ("WORLD_SIZE=16 RANK=9 LOCAL_RANK=1 LOCAL_WORLD_SIZE=8", Group(9, 16, 1, 8)),
    ],
)
def test_several_processes(words: str, place: Group) -> None:
    found = own_place(environment(words) | MASTER)
    assert found == place
    assert found.is_first == (place.number == 0)


UNCLEAR = [
    ("WORLD_SIZE=abc", "WORLD_SIZE='abc'"), ("WORLD_SIZE=", "WORLD_SIZE=''"),
    ("WORLD_SIZE=0", "WORLD_SIZE='0'"), ("WORLD_SIZE=-1", "WORLD_SIZE='-1'"),
    ("WORLD_SIZE=1.0", "WORLD_SIZE='1.0'"), ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE='0'"),
    ("LOCAL_WORLD_SIZE=", "LOCAL_WORLD_SIZE=''"), ("WORLD_SIZE=2", "RANK is not set"),
    ("WORLD_SIZE=2 RANK=", "RANK=''"), ("WORLD_SIZE=2 RANK=2", "from 0 to 1"),
    ("WORLD_SIZE=1 RANK=1", "from 0 to 0"), ("WORLD_SIZE=2 RANK=-1", "RANK='-1'"),
    ("WORLD_SIZE=4 RANK=1 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK='2'"),
    ("WORLD_SIZE=" + "9" * 5000, "WORLD_SIZE='999"), ("WORLD_SIZE=²", "WORLD_SIZE="),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), UNCLEAR)
def test_what_is_unclear_is_refused(words: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        own_place(environment(words) | MASTER)
    first, second = str(raised.value).splitlines()
    assert first.startswith("The environment does not say which process of the run this is: ")
    assert message in first
    assert len(first) < 200
    assert "torchrun" in second


def test_processes_that_cannot_find_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="MASTER_ADDR is not set"):
        own_place({"WORLD_SIZE": "2", "RANK": "0"})


class Board:
    """What torch's store does, for processes that are threads of this one."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.lost = False
        self.written = threading.Event()

    def set(self, key: str, value: str) -> None:
        self.keys.add(key)
        self.written.set()

    def check(self, keys: list[str]) -> bool:
        if self.lost:
            raise RuntimeError("connection reset")
        return self.keys >= set(keys)


def two(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """Two processes that measure, each in a thread of its own."""
    values: list[object] = [None, None]
    both = threading.Barrier(2)

    def exchange(self: Group, value: object) -> list[object]:
        values[self.number] = value
        both.wait(HANG)
        return list(values)

    monkeypatch.setattr(Group, "_exchange", exchange)
    board = Board()
    return [Group(number, 2, store=board) for number in (0, 1)]


def failing(group: Group, message: str) -> threading.Thread:
    """A process that fails, and waits until the others know."""

    def fail() -> None:
        raise DataError(message)

    def run() -> None:
        with pytest.raises(DataError, match=r"\Aa.JPEG"):
            group.together(fail)

    return threading.Thread(target=run, daemon=True)


def test_an_error_of_one_process_ends_the_others_at_their_next_batch(
    val_folder: MakeVal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not measure the rest of their images first, which may take hours."""
    valset = open_valset(val_folder({"n01440764": [f"{n}.JPEG" for n in range(20)]}))
    first, second = two(monkeypatch)
    other = failing(second, "a.JPEG cannot be decoded.\nReplace it.")
    seen: list[int] = []

    def progress(event: Event) -> None:
        if not seen:
            other.start()
            assert first.store.written.wait(HANG)
        seen.append(event.done)

    with exact_settings(), pytest.raises(DataError, match=r"\AProcess 1: a.JPEG cannot"):
        Engine(tiny_task(batch_size=1), progress).measure(valset, group=first)
    other.join()
    assert seen == [1]


def test_an_error_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was told by another process is not told again, by steps within steps."""
    first, second = two(monkeypatch)
    other = failing(second, "a.JPEG")
    other.start()
    with pytest.raises(DataError, match=r"\AProcess 1: a.JPEG\Z"):
        first.together(lambda: first.together(first.wait))
    other.join()


def test_processes_that_are_gone_hide_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = two(monkeypatch)

    def gone(self: Group, value: object) -> list[object]:
        raise EvalError("Another process of this run has ended.")

    def fail() -> None:
        raise DataError("x")

    monkeypatch.setattr(Group, "_exchange", gone)
    with pytest.raises(DataError, match=r"\Ax\Z"):
        first.together(fail)
    first.store.lost = True
    with pytest.raises(EvalError, match="Another process of this run has ended"):
        first.look()


def test_a_group_that_is_unclear_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(UsageError), process_group():
        pass


@pytest.mark.parametrize(
    "variables", ["WORLD_SIZE=abc", "WORLD_SIZE=", "LOCAL_WORLD_SIZE=0", "WORLD_SIZE=2"]
)
def test_a_command_is_refused_in_two_lines(
    variables: str, val_folder: MakeVal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in environment(variables).items():
        monkeypatch.setenv(name, value)
    words = ["--data", str(val_folder(FILES)), "--variant", "small", "--quiet"]
    assert imagenet.main([*words, "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 2
    assert shown.err.startswith("error: The environment does not say which process")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", ["1", "", "00"])
def test_a_rank_that_a_cluster_left_hides_no_verdict(
    rank: str, val_folder: MakeVal, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", rank)
    config = tmp_path / "own.toml"
    config.write_text(
        'name = "own"\nmodel = "small"\nimages = 4\n[reference]\ntop1 = 100.0\nsource = "test"\n'
        '[tolerance.torchvision]\nimages = 1\nreason = "test"\n'
    )
    words = ["--data", str(val_folder(FILES)), "--config", str(config), "--weights", str(weights)]
    words += ["--output", str(tmp_path / "out"), "--quiet", "--forms", "reparameterized"]
    words += ["--image-set", "val"]
    assert imagenet.main(words) == 1
    assert "FAIL  reparameterized: top-1" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.csv").is_file()
