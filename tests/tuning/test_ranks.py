"""Several processes: one launch in which the main process tunes alone, then all tune sharded weights (FSDP)."""

import contextlib
import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import preferences
import pytest
import transformers
from accelerate import PartialState
from conftest import randomised
from preferences import PAIRS, RECIPE, Interrupted, Reached, losses, same, weights
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from xlingtox.models.hooked import HookedLM
from xlingtox.tuning import Lora, Recipe, launch, recipe, tune_dpo

tuned, reached = preferences.tuned, preferences.reached

FULL = Recipe(steps=3, batch_size=2, learning_rate=1e-3, max_length=32, save_every=2, end_token=True)
ADAPTED = dataclasses.replace(FULL, steps=2, learning_rate=1e-2, lora=Lora(rank=4, bits=None))

SCRIPT = """
import json, os, pathlib, sys
import datasets, torch, trl, xlingtox as xt
from xlingtox import processes
from xlingtox.tuning import Lora, Recipe, callback

folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
recipes = json.loads((folder / "recipes.json").read_text())
pairs = datasets.Dataset.from_json(str(folder / "pairs.jsonl"), cache_dir=str(folder))
said, references, kinds = {}, [], set()

class Trainer(trl.DPOTrainer):
    def compute_ref_log_probs(self, model, inputs):
        references.append(self.ref_model is not None)
        return super().compute_ref_log_probs(model, inputs)

def on_step_end(self, args, state, control, model=None, real=callback.TrainingMonitor.on_step_end, **kwargs):
    kinds.update(type(weight).__name__ for weight in model.parameters() if weight.requires_grad)
    return real(self, args, state, control, **kwargs)

trl.DPOTrainer, callback.TrainingMonitor.on_step_end = Trainer, on_step_end

def tune(title, out, recipe, lm=None):
    references.clear(), kinds.clear()
    recipe = Recipe(**recipe | {"lora": recipe["lora"] and Lora(**recipe["lora"])})
    try:
        lm = lm or xt.HookedLM.load(folder / "model")
        after = xt.tune_dpo(lm, pairs, output_dir=folder / out, recipe=recipe, progress=False)
    except Exception as error:
        said[title] = f"{type(error).__name__}: {error}"
    else:
        said[title] = [after.fingerprint(), references[:], sorted(kinds), processes.count(), os.environ["RANK"]]

full, adapted = recipes
tune("alone", "alone", full)
tune("another run", "alone", full | {"steps": 1})
tune("again", "alone", full)
os.environ["ACCELERATE_USE_FSDP"] = "true"
tune("sharded", "sharded", full)
tune("adapted", "adapted", adapted)
tune("uneven", "uneven", full | {"batch_size": 3})
plain = xt.HookedLM.load(folder / "model")
other = plain.unwrapped()
if processes.index():
    torch.nn.init.zeros_(next(other.parameters()))
tune("other weights", "other", full, xt.HookedLM.load(other, tokenizer=plain.tokenizer))
os.environ["FSDP_VERSION"] = "1"
tune("first version", "first", full)
# Not printed: lines of two processes run into each other.
(folder / f"said-{rank}").write_text(json.dumps(said))
"""


def test_two_processes(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    PAIRS.to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "recipes.json").write_text(json.dumps([dataclasses.asdict(FULL), dataclasses.asdict(ADAPTED)]))
    (tmp_path / "script.py").write_text(SCRIPT)
    # `accelerate launch` starts processes in this way for several GPUs of one machine; here there are none.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | more, timeout=3600)
    assert done.returncode == 0, done.stderr
    main, other = (json.loads((tmp_path / f"said-{rank}").read_text()) for rank in (0, 1))

    # The main process has tuned as one process does, and the other has loaded what it wrote.
    alone = tune_dpo(HookedLM.load(tmp_path / "model"), PAIRS, output_dir=tmp_path / "1", recipe=FULL, progress=False)
    assert main["alone"] == [alone.fingerprint(), [False, False], ["Parameter"], 2, "0"]
    assert other["alone"] == [alone.fingerprint(), [], [], 2, "1"]
    assert same(*(load_file(tmp_path / name / "model.safetensors") for name in ("alone", "1")))
    for said in (main, other):
        assert re.search(r"ValueError: .*alone holds another run \(other recipe\)", said["another run"])
        assert said["again"][0] == alone.fingerprint()

    # Both have tuned shards of the same weights, after a second model that is the reference had been dropped.
    assert main["sharded"][0] == other["sharded"][0]
    for said in (main, other):
        assert said["sharded"][1:4] == [[True, True], ["DTensor"], 2]
        assert said["adapted"][1:4] == [[], ["DTensor"], 2], "the reference's log-probabilities were kept"
    ids, mask = alone.encode(["the cat sat on the"])
    adapted = tune_dpo(tmp_path / "model", PAIRS, output_dir=tmp_path / "2", recipe=ADAPTED, progress=False)
    for name, expected, number in (("sharded", alone, "1"), ("adapted", adapted, "2")):
        both = HookedLM.load(tmp_path / name)
        assert_close(both.logits(ids, mask), expected.logits(ids, mask), atol=1e-4, rtol=1e-4)
        step, loss, _ = losses(tmp_path / name)[-2]
        assert (step, loss) == pytest.approx(losses(tmp_path / number)[-2][:2], abs=1e-5)

    # What cannot be is refused in both, before any work.
    for said in (main, other):
        assert "a step has 3 pairs (batch_size 3 × accumulation 1), which 2 processes cannot share" in said["uneven"]
        assert "has other weights in one process than in another" in said["other weights"]
        assert "the first version of FSDP runs on GPUs only: start with --fsdp_version 2" in said["first version"]
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "n", "shared"),
    [(4, 1, 1, (4, 1)), (4, 1, 2, (2, 1)), (1, 4, 2, (1, 2)), (4, 3, 6, (2, 1)), (6, 2, 3, (4, 1)), (5, 2, 2, (5, 1))],
)
def test_processes_share_the_pairs_of_a_step(batch_size, accumulation, n, shared):
    assert recipe.shared_out(batch_size, accumulation, n) == shared
    size, passes = shared
    assert n * size * passes == batch_size * accumulation


def test_the_launcher_is_hidden_and_shown_again(monkeypatch):
    before = {"RANK": "3", "WORLD_SIZE": "8", "ACCELERATE_MIXED_PRECISION": "bf16", "FSDP_VERSION": "1"}
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    state = PartialState()
    known = dict(PartialState._shared_state)
    for error in (KeyboardInterrupt, ValueError):
        with contextlib.suppress(error), launch.alone():
            assert not before.keys() & os.environ.keys()
            assert PartialState(cpu=True).num_processes == 1
            PartialState().num_processes = 5
            raise error
        assert {name: os.environ[name] for name in before} == before
        assert dict(PartialState._shared_state) == known
        assert state.num_processes == known["num_processes"]


def test_under_fsdp_the_reference_is_read_from_the_model_that_was_given(
    tuned, reached, model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(launch, "sharded", lambda: True)
    edited = randomised(copy.deepcopy(model), seed=5)
    lm = HookedLM.load(edited, tokenizer=tokenizer)
    with pytest.raises(Reached):
        tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    named = AutoModelForCausalLM.from_pretrained(reached["model"].config._name_or_path)
    assert same(weights(named), weights(edited))


def test_a_base_that_was_half_written_is_written_again(tuned, reached, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "sharded", lambda: True)
    real = transformers.PreTrainedModel.save_pretrained

    def killed(self, folder, **options):
        real(self, folder, **options)
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(transformers.PreTrainedModel, "save_pretrained", killed)
        with pytest.raises(Interrupted):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert not (tmp_path / "base").exists()
    with pytest.raises(Reached):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), weights(tuned.source))
    assert AutoTokenizer.from_pretrained(tmp_path / "base").eos_token == "<eos>"
