"""Heavy packages are imported only when they are needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINERS = ("trl", "peft", "bitsandbytes", "transformers.trainer", "transformers.trainer_callback")
SCORERS = ("tenacity", "pyrate_limiter", "sklearn", "scipy")


def imported(statement):
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    # The import prints nothing.
    assert len(done.stdout.splitlines()) == 1
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("from xlingtox.tuning import *", TRAINERS),
        ("import xlingtox.scoring", (*SCORERS, "httpx2", "torch")),
        ("from xlingtox.scoring import WordlistScorer", SCORERS),
    ],
)
def test_what_is_not_used_is_not_imported(statement, absent):
    assert not imported(statement).intersection(absent)
