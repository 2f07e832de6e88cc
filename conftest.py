"""How the whole suite is run: in a few processes, each with one thread. A part of it runs in one process."""

import os

import pytest

# Before torch is imported, here and in the processes that tests start: their models are too small for more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes `-n auto` means, which is given in pyproject.toml; 0 is none but this one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(os.cpu_count() or 1, 4) if whole else 0
