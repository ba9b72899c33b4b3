"""The arithmetic of scripts/benchmark.py, with figures worked by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark

    yield benchmark
    for name in ("benchmark", "benchmark_passes", "locktime"):
        sys.modules.pop(name)


def test_fractions_of_the_bound_and_ratios(
    benchmark: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = benchmark.Table(workers=2)
    bound = benchmark.Contender("lower bound", "lower bound")
    # One form: 1.2 GFLOP at 240 GFLOP/s are 5 ms; with 3 ms of decoding and cropping, 8 ms.
    table.add(0, bound, {"gflop": 1.2, "gflops": 240.0, "decode": 0.001, "crop": 0.003})
    both = benchmark.Contender("ours, both forms, torch", "ours", benchmark.BOTH)
    one = benchmark.Contender("ours, reparameterized, torch", "ours")
    cached = benchmark.Contender(benchmark.CACHED, "cached")
    crop = benchmark.Contender("part: decode and crop", "crop")
    small = benchmark.Contender(benchmark.SMALL_BATCHES, "timm", benchmark.BOTH[:1])
    rates = [table.bound_rate(each) for each in (both, one, cached, crop)]
    assert rates == pytest.approx([2 / 0.013, 2 / 0.008, 2 / 0.005, 2 / 0.003])

    table.add(0, small, {"images": 50, "seconds": 1.0, "classes": [[1, 2]]})
    table.add(0, both, {"images": 100, "seconds": 1.0, "classes": [[1, 2], [1, 3]]})
    table.add(0, one, {"images": 125, "seconds": 1.0, "classes": [[1, 2]]})
    assert table.fractions[both.name] == pytest.approx([100 * 0.013 / 2])
    assert table.fractions[one.name] == pytest.approx([0.5])
    assert table.differing == {small.name: 0, both.name: 1, one.name: 0}
    found = benchmark.ratios(table)
    assert found == {f"{both.name} / {small.name} (one form)": [2.0]}
    benchmark.report(table)
    printed = capsys.readouterr().out
    assert "one core: 240 (240 to 240) GFLOP/s, decoding 1.00" in printed
    assert "0.50 (0.50 to 0.50)" in printed
    benchmark.draw(table, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_batch_sizes_and_networks_are_compared(benchmark: Any) -> None:
    table = benchmark.Table(workers=1)
    ours = benchmark.Contender("", "").network
    for network in (ours, *benchmark.NETWORKS):
        result = {"gflop": 1.0, "gflops": 100.0, "decode": 0.001, "crop": 0.002}
        table.add(0, benchmark.Contender("lower bound", "lower bound", network=network), result)
    for contender in benchmark.batches():
        seconds = 2.0 if contender.batch == 1 else 1.0 + (contender.batch != 8)
        table.add(0, contender, {"images": 100, "seconds": seconds, "classes": []})
    for contender in benchmark.networks():
        rate = 30 if contender.kind == "timm" else len(contender.backend) * 10 + 40  # 90 and 150
        table.add(0, contender, {"images": rate, "seconds": 1.0, "classes": []})
    found = benchmark.ratios(table)
    assert found["cached, batches of 1 / of 8 (best)"] == [0.5]
    name = benchmark.NETWORKS[0]
    assert found[f"{name}: ours, torch / ours, onnxruntime"] == [90 / 150]
    assert found[f"{name}: ours, torch / {benchmark.EAGER}"] == [3.0]


def test_lock_time_of_samples(benchmark: Any) -> None:
    """Of 100 images in 4 s, of which the worker had a core for 3: 30 of 50 samples are workers'."""
    worker = "thread (1);_worker (concurrent/futures/thread.py:83);read (a.py:1)"
    samples = f"{worker} 20\n{worker};call (b.py:2) 10\nthread (2);main (c.py:3) 20\n"
    found = sys.modules["locktime"].of_samples(samples, 100, 4.0, 3.0)
    assert found.total == pytest.approx(30 * 5 * 0.75 / 100)  # 5 ms for a sample
    assert found.native == pytest.approx(30 - 1.125)
    assert found.places == pytest.approx({"read (a.py:1)": 0.75, "call (b.py:2)": 0.375})


@pytest.mark.slow
def test_simulated_cores_do_not_do_more_than_they_can() -> None:
    """In both processes: four cores of which each image takes 4 and 2 ms."""
    image = {"locked": 0.0005, "batch": 4}
    rows = [{"native": 0.0035, "forms": 2, **image}, {"native": 0.0015, "forms": 1, **image}]
    asked = {"rows": rows, "processes": 2, "threads": 2, "seconds": 0.5}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/simulated.py"), json.dumps(asked)],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    slow, fast = json.loads(done.stdout)
    assert 0 < slow < 4 / 0.004 * 1.05
    assert 0 < fast < 4 / 0.002 * 1.05
