"""Where a system lacks what Linux has, and where Python runs the package from a zip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from conftest import FILES, HANG, ROOT, MakeVal, rows_of, start

from eval.provenance import code_sha256

COMMAND = (
    "import sys; import other_platform; from eval.cli import main; sys.exit(main(sys.argv[1:]))"
)


def without(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that lacks what other systems do."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@pytest.mark.slow
def test_the_main_job_on_another_system(val_folder: MakeVal, weights: Path, tmp_path: Path) -> None:
    """Twice, so that the second run reads the cache; the answers are those of this system."""
    words = ["--data", str(val_folder(FILES)), "--variant", "small", "--weights", str(weights)]
    words += ["--quiet", "--batch-size", "1"]
    for name in ("first", "second"):
        options = ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / name)]
        done = without("imagenet", *words, *options)
        assert (done.returncode, done.stderr) == (0, "")
    assert "4 crops from --cache" in done.stdout
    assert start("eval.imagenet", *words, "--output", str(tmp_path / "here")).returncode == 0
    found = [rows_of(tmp_path / name / "predictions.csv") for name in ("first", "second", "here")]
    assert found[0] == found[1] == found[2]


def test_a_check_of_the_images_on_another_system(val_folder: MakeVal) -> None:
    done = without("data", "--data", str(val_folder(FILES)))
    assert (done.returncode, "4 images" in done.stdout) == (0, True)


@pytest.mark.slow
def test_the_core_on_another_system() -> None:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "core", "-p", "other_platform"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_zipapp(place: str, tmp_path: Path) -> None:
    """As of a checkout, whose configurations are beside the package, and as of a wheel."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "baselines")
    for name in ("eval", "pplcnet"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    target = source / ("configs" if place == "beside" else "eval/configs")
    shutil.copytree(ROOT / "configs", target, ignore=ignored)
    program = tmp_path / "app.pyz"
    zipapp.create_archive(source, program, main="eval.cli:main")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(program)},
            capture_output=True, text=True, timeout=HANG, check=False,
        )  # fmt: skip

    done = run(str(program), "imagenet", "--data", "x", "--variant", "huge")
    assert "huge: no such variant" in done.stderr
    assert "Available: base, base_ssld, large, small." in done.stderr
    code = (
        "from eval.config import load_variant; from eval.provenance import code_sha256, check_code"
    )
    code += "; check_code(); print(load_variant('base').reference['' ].top1, code_sha256())"
    assert run("-c", code).stdout.split() == ["77.04", code_sha256()]
