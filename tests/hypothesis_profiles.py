"""A pytest plugin: which examples the property tests try, and no limit on their time.

By default the same ones in every run; with `--hypothesis-profile=fresh`, or HYPOTHESIS_PROFILE in
the environment, others in every run, of a seed that is printed first.
"""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings

# "Too slow" is a limit on time, too: a busy machine would fail it.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "fresh", settings.get_profile("repeatable"), derandomize=False, print_blob=True
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeatable")
settings.load_profile(PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed here, so that it is known; by the environment, all test processes have it."""
    if _is_fresh(config) and config.getoption("--hypothesis-seed") is None:
        seed = os.environ.setdefault("FRESH_HYPOTHESIS_SEED", str(secrets.randbelow(2**32)))
        config.option.hypothesis_seed = seed


def pytest_report_header(config: pytest.Config) -> str | None:
    """How to try the same examples again."""
    if not _is_fresh(config):
        return None
    seed = config.getoption("--hypothesis-seed")
    return f"the same examples again: --hypothesis-profile=fresh --hypothesis-seed={seed}"


def _is_fresh(config: pytest.Config) -> bool:
    return (config.getoption("--hypothesis-profile") or PROFILE) == "fresh"
