"""Command-line options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.errors import UsageError
from eval.parser import Parser
from eval.processes import own_place
from eval.request import OPTIONS, Request, option_name, options_of
from eval.values import flag, path


def add_option(parser: Parser, name: str, **details: Any) -> None:
    """An option as `Request` declares it; `details` as of argparse."""
    option = OPTIONS[name]
    about, kind = option.about, option.kind
    if name == "backend":
        from eval.backends import BACKENDS, backend_name

        about, kind = f"{about}: {', '.join(BACKENDS)}", backend_name
    if kind is flag:
        parser.add_flag(option_name(name), about, **details)
        return
    declared: dict[str, Any] = {"help": about, "default": option.default}
    if option.metavar:
        declared["metavar"] = option.metavar
    parser.add(option_name(name), kind, **{**declared, **details})


def add_request_options(parser: Parser, *groups: str, without: str = "") -> None:
    """The options of `Request` that are of some groups; see `to_request`."""
    for name in options_of(*groups):
        if name != without:
            add_option(parser, name, default=argparse.SUPPRESS)


def read(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words of a command that writes a result.

    An earlier result in the folder that they name is put away even if they are refused: it would
    look like that of this command.
    """
    try:
        return parser.read(words)
    except UsageError:
        output = parser.said("--output", words)
        if output and own_place().is_first:
            from eval.results.folder import put_away

            with suppress(UsageError):  # what is wrong with the words is said first
                put_away(Path(output))
        raise


def to_request(values: argparse.Namespace, command: str) -> Request:
    """The request of a command line."""
    given = {name: value for name, value in vars(values).items() if name in OPTIONS}
    return Request(**given, command=command)


def add_array_options(parser: Parser) -> None:
    """How a file of predictions is to be read; see `eval.measure.given.read_answers`."""
    parser.add(
        "--names",
        path,
        metavar="FILE",
        help="for arrays and MLPerf's log: a file with one image name per line",
    )
    parser.add(
        "--array",
        metavar="NAME",
        help="the array to use, if a file has several; the form, of a result",
    )


def add_message_options(parser: Parser, verbose: str = "print tracebacks of errors") -> None:
    """What is printed beside the result."""
    parser.add_flag("--quiet", "print only errors on stderr")
    parser.add_flag("--verbose", verbose)
