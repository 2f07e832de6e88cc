"""Several processes do what one does. Each launch takes a while, so that one launch serves several checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_processes import calls, study
from study import test_stages

from xlingtox import processes
from xlingtox.models import batching
from xlingtox.models.hooked import HookedLM

SCRIPT = Path(__file__).parent / "in_processes.py"


@pytest.fixture(scope="module")
def checkpoint(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "checkpoint"
    lm.unwrapped().save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def launched(n, task, checkpoint, folder):
    """Run the script in n processes, as a user of accelerate does."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(n)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    root = str(SCRIPT.parents[1])
    more = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, str(SCRIPT), task, str(checkpoint), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | more,
        timeout=300,
    )


def contents(folder):
    """Return the bytes of each file with results, by name."""
    kinds = (".json", ".safetensors")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.suffix in kinds and "baked" not in str(file)
    }


def test_two_processes_write_the_bytes_of_one(checkpoint, tmp_path, monkeypatch):
    done = launched(2, "calls", checkpoint, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "errors.ok").read_text() == "2"
    monkeypatch.setitem(batching._MOST_ROWS, "cpu", 3)
    calls(HookedLM.load(checkpoint), tmp_path / "alone")
    alone, together = contents(tmp_path / "alone"), contents(tmp_path / "calls")
    assert alone.keys() == together.keys()
    # The folder of the baked model, which stands in what it wrote, differs.
    there = str(tmp_path / "calls").encode()
    differing = [
        name for name in alone if together[name].replace(there, str(tmp_path / "alone").encode()) != alone[name]
    ]
    assert not differing


def test_a_study_of_which_one_process_is_killed_goes_on_to_the_results_of_one(checkpoint, tmp_path, monkeypatch):
    killed = launched(3, "study-killed", checkpoint, tmp_path)
    assert killed.returncode != 0
    told = [line for line in killed.stdout.splitlines() if line.startswith("lost:")]
    # On a busy machine the launcher may end the others before they can tell.
    if told or "closing signal SIGTERM" not in killed.stderr:
        assert sum(line.endswith("True") for line in told) == 1, killed.stdout + killed.stderr[-3000:]
        assert processes.LOST in told[0]
    assert not (tmp_path / "study" / "results.json").exists()
    assert (tmp_path / "study" / "texts.sqlite").exists()
    # Another number of processes goes on, too.
    done = launched(2, "study", checkpoint, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setitem(batching._MOST_ROWS, "cpu", 2)
    study(checkpoint, tmp_path / "alone")
    alone, together = (
        test_stages.timeless(test_stages.StudyResults.load(tmp_path / name / "results.json"))
        for name in ("alone", "study")
    )
    assert together == alone


def test_one_process_shares_nothing_out():
    assert processes.launched() == processes.count() == 1
    assert processes.is_main()
    assert processes.gathered("mine") == ["mine"]
    with processes.separate():
        assert processes.count() == 1
    with pytest.raises(ValueError, match="too small"):
        processes.from_main(lambda: (_ for _ in ()).throw(ValueError("too small")))


def test_accelerate_that_started_fewer_processes_than_asked(monkeypatch):
    assert not processes.too_few_launched()
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert processes.too_few_launched()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not processes.too_few_launched()


def test_a_launcher_that_started_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert processes.count() == 1
