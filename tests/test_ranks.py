"""The processes of a run evaluate the same, or end together and say what differs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import FILES, MakeVal, randomize_bn
from safetensors.torch import save_file

import pplcnet
from eval.imagenet import main

WORLD = """
import json, os, sys
from eval.imagenet import main
for run in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(run["port"])
    own = run["processes"][int(os.environ["RANK"])]
    exec(own["code"])
    print(f"\\n=== {main(own['words'])}", flush=True)
    print("\\n===", file=sys.stderr, flush=True)
"""


class Ended(NamedTuple):
    """How one process ended one run."""

    code: int
    stderr: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Ended]]:
    """Start two processes as torchrun does, and let them do several runs, one after another.

    Args:
        runs: what each process does in each run: its ``words``, and ``code`` to execute before.

    Returns:
        How each process ended, for each run.
    """
    plan = json.dumps([{"port": free_port(), "processes": processes} for processes in runs])
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORLD, plan], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        shown = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = []
    for out, err in shown:
        codes = [int(line[4:]) for line in out.splitlines() if line.startswith("=== ")]
        assert len(codes) == len(runs), err
        found.append(
            [Ended(code, text) for code, text in zip(codes, err.split("\n===\n"), strict=False)]
        )
    return [list(both) for both in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network's file, of the same name."""
    torch.manual_seed(7)
    model = pplcnet.create_model("small").eval()
    randomize_bn(model)
    path = tmp_path_factory.mktemp("other") / "small.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_what_differs_ends_both(
    val_folder: MakeVal, weights: Path, other_weights: Path, tmp_path: Path
) -> None:
    data = val_folder(FILES)
    relabeled = tmp_path / "relabeled"
    shutil.copytree(data, relabeled)
    (relabeled / "n01440764").rename(relabeled / "n01484850")
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    for path in damaged.rglob("*.JPEG"):
        path.write_bytes(b"\xff\xd8damaged")
    no_image = tmp_path / "none"
    no_image.mkdir()

    def words(**options: object) -> list[str]:
        chosen = {
            "data": data, "variant": "small", "weights": weights, "forms": "reparameterized",
            "batch-size": 1, "workers": 1, "output": tmp_path / "o", **options,
        }  # fmt: skip
        return [*(f"--{name}={value}" for name, value in chosen.items()), "--quiet"]

    def run(code: str = "", **options: object) -> list[dict[str, Any]]:
        return [{"words": words(), "code": ""}, {"words": words(**options), "code": code}]

    another_version = (
        "import eval.provenance as p; before = p.PACKAGES; p.PACKAGES = (*before, 'pytest')"
    )
    cases = [
        (run(weights=other_weights), 4, "files small.safetensors is "),
        (run(data=relabeled), 3, "image_list_sha256 is "),
        (run(data=no_image), 3, "Process 1: "),
        (run(preprocess="squash"), 2, "preprocess is squash, not torchvision"),
        (run(forms="unfused"), 2, "forms is ['unfused'], not ['reparameterized']"),
        (run(precision="bf16"), 2, "precision is bf16, not fp32"),
        (run(**{"batch-size": 2}), 2, "batch_size is 2, not 1"),
        (run(**{"on-bad-image": "record"}), 2, "on_bad_image is record, not fail"),
        (run(limit=3), 3, "images is 3, not 4"),
        (run(data=damaged), 3, "Process 1: "),
        (run(another_version), 2, "versions pytest is "),
        ([{"words": words(), "code": "p.PACKAGES = before" if rank else ""} for rank in (0, 1)],
         0, ""),
    ]  # fmt: skip
    for (_, code, message), both in zip(cases, start([case[0] for case in cases]), strict=True):
        for rank, ended in enumerate(both):
            assert ended.code == code, (message, rank, ended)
            # The process whose own error it is says it without the number.
            assert message in ended.stderr or (message == "Process 1: " and rank == 1), ended
            assert "bug" not in ended.stderr
    assert (tmp_path / "o" / "summary.csv").is_file(), "only of the last run"
    assert main(words(output=tmp_path / "alone")) == 0
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
