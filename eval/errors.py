"""Errors that end a run, each with the exit code that scripts see.

    EvalError               2
    ├── UsageError          2   options or configuration
    ├── DataError           3   validation set missing, mislabeled or unreadable
    │   └── UnreadableImage 3   one image of it, which --on-bad-image record may record
    ├── ModelError          4   weights missing, damaged, refused or of another model
    └── LogitsError         5   non-finite or constant predictions, or forms that disagree

A message is one or two lines: what was found, where, and what to do.
"""

from __future__ import annotations


class EvalError(Exception):
    """Base class; the command line prints the message and exits with `exit_code`."""

    exit_code = 2


class UsageError(EvalError):
    """Options or a configuration that cannot be used."""


class DataError(EvalError):
    """A validation set that is missing, mislabeled or unreadable."""

    exit_code = 3


class UnreadableImage(DataError):
    """One image whose file cannot be read; the others may be fine."""


class ModelError(EvalError):
    """Weights that are missing, damaged, refused or of another model."""

    exit_code = 4


class LogitsError(EvalError):
    """Predictions from which no accuracy can be computed."""

    exit_code = 5
