"""Several processes: one run under `accelerate launch`, and what FSDP asks for."""

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import preferences
import pytest
import transformers
import trl
from conftest import randomised
from preferences import PAIRS, RECIPE, Interrupted, Reached, same, weights
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from xlingtox.models.hooked import HookedLM
from xlingtox.tuning import Recipe, tune_dpo

tuned, reached = preferences.tuned, preferences.reached


def test_two_processes_tune_one_model(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    PAIRS.to_json(tmp_path / "pairs.jsonl")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import json, os, pathlib, datasets, xlingtox as xt
            from xlingtox.tuning import run_folder
            said = []
            def claimed(self, about, real=run_folder.RunFolder.claimed):
                said.append(run_folder.PartialState().is_main_process)
                return real(self, about)
            run_folder.RunFolder.claimed = claimed
            pairs = datasets.Dataset.from_json({str(tmp_path / "pairs.jsonl")!r}, cache_dir={str(tmp_path)!r})
            recipe = xt.tuning.Recipe(steps=3, batch_size=1, learning_rate=1e-3, max_length=32, save_every=2)
            lm = xt.HookedLM.load({str(tmp_path / "model")!r})
            after = xt.tune_dpo(lm, pairs, output_dir={str(tmp_path / "out")!r}, recipe=recipe, progress=False)
            # Not printed: lines of two processes run into each other.
            said.append(after.fingerprint())
            pathlib.Path({str(tmp_path)!r}, "said-" + os.environ["RANK"]).write_text(json.dumps(said))
        """)
    )
    # What `accelerate launch` starts for several GPUs of one machine, here with none.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | more
    done = subprocess.run(
        [*launcher, str(script)], capture_output=True, text=True, check=False, env=environment, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"said-{rank}").read_text()) for rank in (0, 1)]
    # One of them writes what both read.
    assert [main for main, _ in reports] == [True, False]
    assert reports[0][1] == reports[1][1]
    # Two processes with one pair each do what one does with two.
    recipe = Recipe(steps=3, batch_size=2, learning_rate=1e-3, max_length=32)
    alone = tune_dpo(tmp_path / "model", PAIRS, output_dir=tmp_path / "alone", recipe=recipe, progress=False)
    both = HookedLM.load(tmp_path / "out")
    ids, mask = both.encode(["the cat sat on the"])
    assert_close(both.logits(ids, mask), alone.logits(ids, mask), atol=1e-4, rtol=1e-4)


def test_under_fsdp_the_reference_is_read_from_the_model_that_was_given(
    tuned, reached, model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    edited = randomised(copy.deepcopy(model), seed=5)
    lm = HookedLM.load(edited, tokenizer=tokenizer)
    with pytest.raises(Reached):
        tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    named = AutoModelForCausalLM.from_pretrained(reached["model"].config._name_or_path)
    assert same(weights(named), weights(edited))


def test_sharded_weights_are_saved_whole(tuned, tmp_path, monkeypatch):
    """transformers saves nothing where FSDP is set to SHARDED_STATE_DICT, as its second version is by default."""

    class Plugin:
        state_dict_type = "SHARDED_STATE_DICT"

        def set_state_dict_type(self, kind):
            self.state_dict_type = kind

    class Trainer(trl.DPOTrainer):
        def train(self, **options):
            done = super().train(**options)
            monkeypatch.setitem(self.accelerator.state.__dict__, "fsdp_plugin", Plugin())
            self.is_fsdp_enabled = True
            return done

    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    assert (
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False).fingerprint()
        == tuned.after.fingerprint()
    )


def test_a_base_that_was_half_written_is_written_again(tuned, reached, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
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
