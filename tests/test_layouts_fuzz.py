"""Damaged lists, tars and shards: only our errors come out. scripts/fuzz_readers.py does more."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

EXAMPLES = {
    "name list": 300,
    "ground truth": 10,  # of 50,000 lines each
    "Kaggle solution": 300,
    "tar, ustar": 300,
    "tar, GNU": 300,
    "tar, pax": 300,
    "parquet": 200,
    "arrow": 200,
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_damaged_input_is_read_or_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("fuzz_readers")
    assert set(script.inputs()) == set(EXAMPLES)
    counts = script.fuzz(kind, EXAMPLES[kind], tmp_path)
    assert counts["refused"] > 0
    assert counts.total() == EXAMPLES[kind]
