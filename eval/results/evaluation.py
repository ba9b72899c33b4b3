"""The result of `eval.evaluate`: the record of a run, with its tables and its reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.results.folder import OutputFolder
from eval.results.record import Record
from eval.results.schema import confusions_table, per_class_table, predictions_table, summary_table


@dataclass(frozen=True)
class Evaluation(Record):
    """The result of `eval.evaluate`; its attributes are those of `Record`."""

    @property
    def summary(self) -> pd.DataFrame:
        """The rows of ``summary.csv``: one per form."""
        return summary_table(self)

    @property
    def predictions(self) -> pd.DataFrame:
        """The rows of ``predictions.csv``: one per image."""
        return predictions_table(self)

    @property
    def per_class(self) -> pd.DataFrame:
        """The rows of ``per_class.csv``: one per class."""
        return per_class_table(self)

    @property
    def confusions(self) -> pd.DataFrame:
        """The rows of ``confusions.csv``: one per form and pair of classes."""
        return confusions_table(self)

    def save(self, folder: Path | str) -> None:
        """Write all reports into a folder, ``summary.csv`` last.

        Raises:
            UsageError: the folder cannot be written to.
        """
        with OutputFolder(Path(folder)) as output:
            output.save(self)
