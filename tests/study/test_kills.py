"""A process that is killed leaves whole files, and what it was doing goes on to the same end."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_few_kills_of_each_kind():
    """A handful, at other moments in every run; a study tunes, too. The benchmark does hundreds."""
    root = Path(__file__).parents[2]
    # A process of its own: one that has threads must not be forked.
    command = [sys.executable, str(root / "tests" / "benchmarks" / "kills.py")]
    command += ["--saves", "20", "--studies", "1", "--tunings", "0", "--adapters", "0"]
    more = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "saves: 20 kills, every file whole" in done.stdout
    assert "study: 1 kills" in done.stdout
