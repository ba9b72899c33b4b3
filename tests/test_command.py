"""`run_command`: whatever happens, an exit code of the contract and one clear message."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, ROOT

from eval.cli import run_command
from eval.errors import DataError, EvalError, LogitsError, ModelError, UsageError
from eval.parser import Parser


def raising(error: BaseException) -> Callable[[Sequence[str]], int]:
    def action(arguments: Sequence[str]) -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("kind", "code"), [(UsageError, 2), (DataError, 3), (ModelError, 4), (LogitsError, 5)]
)
def test_errors_have_codes_and_no_traceback(
    kind: type[EvalError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(kind("What, where.\nWhat to do.")), []) == code
    assert capsys.readouterr().err == "error: What, where.\nWhat to do.\n"
    assert run_command(raising(kind("x")), ["--verbose"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_code_of_the_command_is_its_own(code: int) -> None:
    assert run_command(lambda words: code, []) == code


def test_a_crash_is_not_a_measured_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(ZeroDivisionError("x")), []) == 70
    error = capsys.readouterr().err
    assert "ZeroDivisionError: x" in error
    assert "This is a bug" in error


def test_out_of_memory_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(MemoryError()), []) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_ctrl_c_says_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(KeyboardInterrupt()), [], interrupted=lambda: "kept") == 130
    assert capsys.readouterr().err == "kept\n"


@pytest.mark.skipif(
    sys.platform == "win32" or "other_platform" in sys.modules, reason="no handler of SIGTERM here"
)
def test_sigterm_is_ctrl_c_and_the_handler_is_put_back() -> None:
    # In a process of its own. pytest keeps a small stack for signals (its faulthandler), and once a
    # runtime has used AMX, whose registers are large, the system finds no room for one there.
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "130 True\n", "interrupted\n")


KILLED = """
import os, signal
from eval.cli import run_command

def killed(words):
    os.kill(os.getpid(), signal.SIGTERM)
    return 0

before = signal.getsignal(signal.SIGTERM)
print(run_command(killed, []), signal.getsignal(signal.SIGTERM) is before)
"""


def test_a_second_ctrl_c_while_the_first_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        raise KeyboardInterrupt

    assert run_command(raising(KeyboardInterrupt()), [], interrupted=told) == 130
    assert run_command(raising(DataError("x")), []) == 3, "nothing is left of it"


LEFT = """
import atexit, os, signal, sys
from eval.cli import leave

class Late:  # what a library does while Python shuts down
    def __del__(self, send=os.kill, me=os.getpid(), number=int(sys.argv[2])):
        send(me, number)

late = Late()
atexit.register(print, "last", end="", flush=False)
if sys.argv[1] == "early":
    atexit.register(os.kill, os.getpid(), int(sys.argv[2]))
print("said", end=" ", flush=True)
leave(5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(
    ("when", "name", "said"),
    [
        ("early", "SIGINT", "said "), ("early", "SIGTERM", "said "),
        ("late", "SIGINT", "said last"), ("late", "SIGTERM", "said last"),
        ("late", "SIGABRT", "said last"),  # a library fails while it is unloaded
    ],
)  # fmt: skip
def test_what_comes_while_python_ends_changes_no_exit_code(when: str, name: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT, when, str(int(getattr(signal, name)))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (5, said, "")


def test_from_another_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_command(lambda words: 1, [])))
    thread.start()
    thread.join()
    assert codes == [1]


def test_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    run_command(raising(ZeroDivisionError()), [])
    assert (sys.stdout, sys.stderr) == before


def test_mistyped_options_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def action(words: Sequence[str]) -> int:
        Parser("history", "x").read(words)
        return 0

    assert run_command(action, ["--no-such-option"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: python -m eval.history does not take --no-such-option.\n")
    assert "usage" not in error


@pytest.mark.parametrize("processes", [None, "1", "2"])
def test_torchrun_hides_the_code_so_it_is_printed(
    processes: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes:
        started = {"WORLD_SIZE": processes, "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
        for name, value in started.items():
            monkeypatch.setenv(name, value)
    assert run_command(lambda words: 3, []) == 3
    expected = "exit code 3 (torchrun itself exits with 1)\n" if processes == "2" else ""
    assert capsys.readouterr().err == expected
    assert run_command(lambda words: 0, []) == 0
    assert capsys.readouterr().err == ""


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("earned", "code"), [(0, 2), (1, 1), (5, 5)])
def test_stdout_that_is_full_changes_no_verdict(
    earned: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def action(words: Sequence[str]) -> int:
        print("the table")
        print("the rest")
        return earned

    monkeypatch.setattr(sys, "stdout", Full())
    assert run_command(action, []) == code
    assert capsys.readouterr().err == "error: stdout cannot be written: No space left on device.\n"


SCRIPT = """
import sys
from eval.cli import leave, run_command

def action(words):
    for number in range(20_000):
        print("a line of a table", number)
    print("a remark", file=sys.stderr)
    open(words[0], "w").write("done")
    return int(words[1])

leave(run_command(action))
"""


def child(redirection: str, done: Path, code: int) -> subprocess.CompletedProcess[str]:
    """A command in a shell, with a redirection; its exit code is the last line of stdout."""
    line = f'{{ "$0" -c "$1" "$2" {code}; echo $? > "$3"; }} {redirection}'
    words = ["sh", "-c", line, sys.executable, SCRIPT, str(done), f"{done}.code"]
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "earned", "code"),
    [
        ("| true", 0, 0), ("| true", 1, 1), ("| head -n 1", 5, 5),
        (">/dev/full", 0, 2), (">/dev/full", 1, 1), (">&-", 1, 1), (">&-", 0, 0),
        ("2>&-", 0, 0), ("2>/dev/full", 0, 0), ("2>&- | true", 1, 1), (">&- 2>&-", 3, 3),
    ],
)  # fmt: skip
def test_streams_that_end_early_end_nothing(
    redirection: str, earned: int, code: int, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    child(redirection, done, earned)
    assert done.read_text() == "done", "all work behind the output was done"
    assert Path(f"{done}.code").read_text().strip() == str(code)


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    script = (
        "import sys; from eval.cli import run_command\n"
        "def action(words):\n    print('caf\\udce9 \\u2013'); return 0\n"
        "sys.exit(run_command(action))"
    )
    environment: dict[str, Any] = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stdout) == (0, "caf\\udce9 \\u2013\n")


def test_an_error_shows_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(words: Sequence[str]) -> int:
        raise UsageError("x\x1b[2J\u202e is no file.\nName another one.")

    assert run_command(fail, []) == 2
    assert capsys.readouterr().err == ("error: x\\x1b[2J\\u202e is no file.\nName another one.\n")
