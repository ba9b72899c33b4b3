"""``pplcnet-eval COMMAND``: all commands behind one name.

``pplcnet-eval imagenet ...`` is ``python -m eval.imagenet ...``, whatever the current folder holds.
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

from eval.errors import EvalError, UsageError
from eval.processes import own_place
from eval.text import printable_lines

NAME = "pplcnet-eval"

INTERRUPTED = 130
CRASHED = 70  # EX_SOFTWARE of sysexits.h

# In the order of the help; each is a module of this package with a `main`.
COMMANDS = {
    "imagenet": "measure a model and compare it with its reported accuracy",
    "data": "check a validation set before measuring on it",
    "regression": "compare two results: the gate for CI",
    "score": "score predictions that another device or runtime made",
    "history": "show accuracy and speed over many runs",
    "sweep": "compare models, forms, backends and precisions in one table",
    "diagnose": "explain a wrong accuracy",
    "audit": "measure a random sample of a result again",
    "export": "export a model for deployment",
}


def program(command: str) -> str:
    """How the user started a command, for its help: what argparse calls ``prog``."""
    started = Path(sys.argv[0]).stem
    return f"{NAME} {command}" if started == NAME else f"python -m eval.{command}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and give its exit code."""
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if name not in COMMANDS:
        return run_command(_without_a_command, [name, *arguments])
    try:
        command = importlib.import_module(f"eval.{name}")
    except Exception as error:
        return exit_code(error)
    code: int = command.main(arguments)
    return code


def console() -> NoReturn:
    """What ``pplcnet-eval`` runs."""
    leave(main())


def _without_a_command(arguments: Sequence[str]) -> int:
    match arguments[0]:
        case "-h" | "--help":
            print(_help())
            return 0
        case "--version":
            from eval.version import version

            print(f"{NAME} {version()}")
            return 0
        case "":  # nothing was measured: not 0, which CI would take for a success
            print(_help())
            return UsageError.exit_code
        case name:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"{NAME} has no command {name!r}.{hint}\nAvailable: {', '.join(COMMANDS)}."
            )


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {NAME} COMMAND [options]\n\n"
        "Does this PP-LCNetV2 give the reported ImageNet accuracy?\n\n"
        f"commands:\n{rows}\n\n"
        f"{NAME} COMMAND --help shows the options of a command."
    )


def run_command(
    action: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None = None,
    *,
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> int:
    """Run a command and give its exit code.

    Args:
        action: takes the arguments; it may raise any `EvalError`.
        argv: the arguments; those of this process if None.
        interrupted: what to say after Ctrl-C or SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _safe_streams() as streams, _sigterm_interrupts():
        try:
            try:
                code = action(arguments)
            except KeyboardInterrupt:
                print(interrupted(), file=sys.stderr)
                code = INTERRUPTED
            except Exception as error:
                code = exit_code(error, verbose="--verbose" in arguments)
            lost = streams.exit_code()
            code = code or lost
            with suppress(UsageError):  # has been said
                if code and own_place().count > 1:
                    print(f"exit code {code} (torchrun itself exits with 1)", file=sys.stderr)
        except KeyboardInterrupt:  # one more, while the end was being told
            code = INTERRUPTED
    return code


def leave(code: int) -> NoReturn:
    """End this process with the exit code of its command, whatever comes meanwhile.

    Python and the runtimes take a moment to shut down. Ctrl-C would show a traceback then, and a
    signal, or a library that fails while it is unloaded, would hide the exit code.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, a full disk, closed
            stream.flush()
    os._exit(code)


def exit_code(error: BaseException, *, verbose: bool = False) -> int:
    """Say on stderr why a command ends, and give its exit code: never 1, a measured difference."""
    if isinstance(error, EvalError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, MemoryError):
        code, message = 2, "out of memory.\nUse a smaller --batch-size or fewer --workers."
    elif isinstance(error, ImportError) and not _is_ours(error):
        code, message = 2, _missing(error)
    else:
        traceback.print_exception(error)
        print(f"This is a bug in {NAME}: please report it.", file=sys.stderr)
        return CRASHED
    print(f"error: {printable_lines(message)}", file=sys.stderr)
    if verbose:
        traceback.print_exception(error)
    return code


def end_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What `sys.excepthook` is for a command: errors outside `run_command`, as of its imports.

    Python itself would end with 1, whatever the hook does.
    """
    if not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    code = exit_code(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_ours(error: ImportError) -> bool:
    """Whether a module of this project is missing, or a name in one: a bug."""
    return (error.name or "").partition(".")[0] in ("eval", "pplcnet")


def _missing(error: ImportError) -> str:
    """What to do about a package that is missing or broken, in two lines."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        what = f"the Python package {error.name.partition('.')[0]} is not installed"
    else:
        what = f"a Python package cannot be imported: {str(error).partition(chr(10))[0]}"
    return (
        f"{what} ({sys.executable}).\n"
        f"Install {NAME} with its dependencies (pip install .), or activate the environment that "
        "has them."
    )


class _SafeStream:
    """A text stream whose failures are remembered and never raised; nothing where there is none."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream: Any = stream if stream is not None else open(os.devnull, "w")  # noqa: PTH123, SIM115
        self.error: OSError | None = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes

    def write(self, text: str) -> int:
        try:
            if self.error is None:
                self.stream.write(text)
        except OSError as error:
            self._give_up(error)
        except UnicodeEncodeError:
            self.stream.write(text.encode("ascii", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        try:
            if self.error is None:
                self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Keep the interpreter's own last flush from failing, too."""
        self.error = error
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Streams:
    """stdout and stderr of a command."""

    def __init__(self) -> None:
        self.out, self.err = _SafeStream(sys.stdout), _SafeStream(sys.stderr)

    def exit_code(self) -> int:
        """2 if the results could not be printed; 0 if the reader closed the pipe early."""
        self.out.flush()
        error = self.out.error
        if error is None or isinstance(error, BrokenPipeError):
            return 0
        self.err.write(f"error: stdout cannot be written: {error.strerror or error}.\n")
        return 2


@contextmanager
def _safe_streams() -> Iterator[_Streams]:
    before = sys.stdout, sys.stderr
    streams = _Streams()
    sys.stdout, sys.stderr = streams.out, streams.err
    try:
        yield streams
    finally:
        streams.out.flush()
        streams.err.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that what was measured is kept."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except (ValueError, OSError):  # not the main thread, or none on this system
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    console()
