"""What an installation is made from: constraints.txt, the image, and the lists that feed them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
NOT_FOR_USERS = {"test", "dev"}


def requirements() -> list[Requirement]:
    """Of the package and of its extras for users."""
    rows = list(PROJECT["project"]["dependencies"])
    for extra, more in EXTRAS.items():
        rows += more if extra not in NOT_FOR_USERS else []
    found = map(Requirement, rows)
    return [row for row in found if row.name != PROJECT["project"]["name"]]


def pins() -> dict[str, Version]:
    rows = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for row in rows:
        if row and not row.startswith("#"):
            pin = Requirement(row)
            assert not pin.extras
            assert pin.marker is None
            (only,) = pin.specifier
            assert only.operator == "=="
            assert canonicalize_name(pin.name) == pin.name
            assert pin.name not in found
            found[pin.name] = Version(only.version)
    return found


def test_constraints_pin_every_dependency_and_nothing_else() -> None:
    expected = {canonicalize_name(row.name) for row in requirements()}
    assert set(pins()) == expected, "run: python scripts/constraints.py > constraints.txt"


def test_pins_are_in_the_declared_ranges() -> None:
    pinned = pins()
    for row in requirements():
        assert pinned[canonicalize_name(row.name)] in row.specifier, row


def test_every_dependency_declares_a_lowest_version() -> None:
    for row in requirements():
        assert [each.operator for each in row.specifier if each.operator == ">="], row


def test_the_script_prints_the_names() -> None:
    found = subprocess.run(
        [sys.executable, "scripts/constraints.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        assert "is not installed" in found.stderr
        pytest.skip("not every extra is installed")
    names = [row.partition("==")[0] for row in found.stdout.splitlines() if "==" in row]
    assert names == list(pins())


def test_dev_tools_are_pinned() -> None:
    """Another release of a linter finds other things: checks must not fail by themselves."""
    for row in map(Requirement, EXTRAS["dev"]):
        assert [each.operator for each in row.specifier] == ["=="], row


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    rows = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in rows]


def test_the_image_runs_our_script_as_a_user_without_rights() -> None:
    found = dict(instructions())
    assert found["FROM"] == "python:3.11-slim"
    assert found["USER"].isdecimal()
    assert int(found["USER"]) > 0
    assert found["ENTRYPOINT"] == '["pplcnet-eval"]'
    assert "pplcnet-eval" in PROJECT["project"]["scripts"]
    assert "/results" in found["VOLUME"]
    assert "/val" not in found["VOLUME"]  # mounted by whoever runs it, to be read only
    assert [word for word, _ in instructions()].index("USER") > [
        word for word, _ in instructions()
    ].index("RUN")


def test_the_image_takes_the_versions_of_constraints() -> None:
    installs = dict(instructions())["RUN"].split("&&")
    pip = [row for row in installs if "pip install" in row]
    assert len(pip) == 2
    assert all("--constraint constraints.txt" in row for row in pip)
    extras = pip[1].partition("[")[2].partition("]")[0].split(",")
    assert set(extras) <= set(EXTRAS) - NOT_FOR_USERS


def test_the_image_gets_what_the_package_is_built_from_and_no_more() -> None:
    rows = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rows
    kept = {row[1:] for row in rows if row.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        *PROJECT["project"]["license-files"],
        PROJECT["project"]["readme"],
        "pyproject.toml",
        "constraints.txt",
    }
    assert kept == needed
    assert not any(fnmatch(".git", row) for row in kept)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    found = subprocess.run(
        ["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.returncode) == ("", 0)
