"""Runs that were interrupted, killed or broken off end as if they had not been; runs that diverge stop."""

import dataclasses
import json
import math
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import preferences
import pytest
import torch
import trl
from preferences import PAIRS, PROMPTS, RECIPE, TURNED, Interrupted, losses
from transformers import AutoModelForCausalLM

from xlingtox import mini
from xlingtox.tuning import MINI, Diverged, Lora, callback, run_folder, tune_dpo

tuned = preferences.tuned


def interrupt(monkeypatch, step):
    """Break off after `step` steps, between the steps."""
    real = callback.TrainingMonitor.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Interrupted

    monkeypatch.setattr(callback.TrainingMonitor, "on_step_end", on_step_end)


def untimed(folder):
    """The log without how long things took."""
    timed = ("runtime", "per_second")
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]


VALIDATED = dataclasses.replace(RECIPE, steps=9, save_every=2, evaluate_every=3, optimizer="adamw_torch")


IMPATIENT = dataclasses.replace(VALIDATED, steps=20, evaluate_every=2, patience=2)


# Two passes a step over four pairs, three times and a half.
PASSES = dataclasses.replace(VALIDATED, steps=None, epochs=3.5, batch_size=1, accumulation=2)


@pytest.mark.parametrize(("recipe", "last"), [(VALIDATED, 9), (IMPATIENT, 6), (PASSES, 7)])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tuned, tmp_path, monkeypatch, step, recipe, last):
    lm = tuned.lm
    uninterrupted = tune_dpo(lm, PAIRS, output_dir=tmp_path / "whole", recipe=recipe, validation=TURNED, progress=False)
    assert losses(tmp_path / "whole")[-1][0] == last
    with monkeypatch.context() as patched:
        interrupt(patched, step)
        with pytest.raises(Interrupted):
            tune_dpo(lm, PAIRS, output_dir=tmp_path / "cut", recipe=recipe, validation=TURNED, progress=False)
    # A checkpoint that was being written when it ended is not taken.
    broken = tmp_path / "cut" / "checkpoints" / "checkpoint-99"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"half")
    resumed = tune_dpo(lm, PAIRS, output_dir=tmp_path / "cut", recipe=recipe, validation=TURNED, progress=False)
    assert resumed.fingerprint() == uninterrupted.fingerprint()
    log = untimed(tmp_path / "cut")
    assert log == untimed(tmp_path / "whole")
    counts = [row["num_tokens"] for row in log if "num_tokens" in row]
    assert counts == sorted(set(counts)), "tokens are counted on"
    assert log[-1]["train_loss"] == pytest.approx(np.mean([row["loss"] for row in log if "loss" in row]))
    assert not (tmp_path / "cut" / "checkpoints").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        dataclasses.replace(RECIPE, steps=5, save_every=2),
        IMPATIENT,
        dataclasses.replace(RECIPE, steps=5, save_every=2, learning_rate=1e-2, lora=Lora(rank=4, bits=None)),
        dataclasses.replace(IMPATIENT, learning_rate=1e-2, lora=Lora(rank=4, bits=None)),
    ],
)
@pytest.mark.parametrize("broken", ["saving", "merging"])
def test_a_run_broken_off_after_its_last_step_trains_no_further(tuned, tmp_path, monkeypatch, recipe, broken):
    """Its last step is in the middle of an epoch, or patience was used up."""
    if recipe.lora is None and broken == "merging":
        return
    validation = None if recipe.patience is None else TURNED

    def tune(name):
        return tune_dpo(
            tuned.lm, PAIRS, output_dir=tmp_path / name, recipe=recipe, validation=validation, progress=False
        )

    uninterrupted, real = tune("whole"), trl.DPOTrainer.save_model

    def save_model(self, folder, *args, **options):
        if "checkpoint-" not in str(folder):
            raise Interrupted
        real(self, folder, *args, **options)

    def merged(*_):
        raise Interrupted

    for _ in range(2):
        with monkeypatch.context() as patched:
            if broken == "saving":
                patched.setattr(trl.DPOTrainer, "save_model", save_model)
            else:
                patched.setattr("xlingtox.models.adapters.merge_adapter", merged)
            with pytest.raises(Interrupted):
                tune("cut")
    assert tune("cut").fingerprint() == uninterrupted.fingerprint()
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def test_a_process_that_was_killed(tmp_path):
    """The miniature, at a random moment of a random step."""
    step = random.SystemRandom().randrange(1, 6)
    moment = random.SystemRandom().choice(["on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_save"])
    step += step % 2 if moment == "on_save" else 0
    pairs = mini.pairs("en").select(range(32))
    recipe = dataclasses.replace(MINI, steps=6, batch_size=4, save_every=2)
    uninterrupted = tune_dpo("mini", pairs, output_dir=tmp_path / "whole", recipe=recipe, progress=False)
    code = f"""
        import dataclasses, os, torch
        from xlingtox import data, mini, tuning
        from xlingtox.tuning import callback
        torch.set_num_threads({torch.get_num_threads()})
        def kill(self, args, state, control, **kwargs):
            if state.global_step >= {step}:
                os.kill(os.getpid(), 9)
        setattr(callback.TrainingMonitor, {moment!r}, kill)
        recipe = dataclasses.replace(tuning.MINI, steps=6, batch_size=4, save_every=2)
        pairs, folder = mini.pairs("en").select(range(32)), {str(tmp_path / "cut")!r}
        tuning.tune_dpo("mini", pairs, output_dir=folder, recipe=recipe, progress=False)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9, (step, moment, killed.stderr)
    resumed = tune_dpo("mini", pairs, output_dir=tmp_path / "cut", recipe=recipe, progress=False)
    assert resumed.fingerprint() == uninterrupted.fingerprint(), (step, moment)


def test_a_run_killed_in_its_last_moment_is_cleared(tuned, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, steps=2, save_every=2)

    def clear(_):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(run_folder.RunFolder, "clear", clear)
        with pytest.raises(Interrupted):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    assert (tmp_path / "checkpoints").exists()
    for left in (False, True):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
        record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
        assert (record["finished"], "clearing" in record, "name" in record["model"]) == (True, False, True)
        assert (tmp_path / "checkpoints").exists() == left
        (tmp_path / "checkpoints").mkdir(exist_ok=True)  # later, it is the user's


WILD = dataclasses.replace(
    RECIPE, steps=30, learning_rate=1e36, warm_up=3, optimizer="sgd", save_every=1, max_grad_norm=1e30
)


def gives_a_number(checkpoint, tokenizer):
    plain = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return all(plain(torch.tensor([tokenizer(text)["input_ids"]])).logits.isfinite().all() for text in PROMPTS)


def test_a_run_that_diverges_stops_and_names_a_checkpoint_that_is_good(tuned, tokenizer, tmp_path):
    """The newest checkpoint has finite weights too, of which the loss is no number."""
    message = r"at step \d+ of 30; the last good checkpoint is (.*checkpoint-\d+)\. .*learning_rate"
    for _ in range(2):
        with pytest.raises(Diverged, match=message) as raised:
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=WILD, progress=False)
        good = Path(re.search(message, str(raised.value))[1])
        assert gives_a_number(good, tokenizer)
        kept = sorted((tmp_path / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        assert kept[-2:-1] == [good]
        assert not gives_a_number(kept[-1], tokenizer)
    log = json.loads((tmp_path / "log.json").read_text("utf-8"))
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert None in (log[-1]["loss"], log[-1]["grad_norm"])


def test_a_run_that_diverges_in_its_last_step_is_not_finished(tuned, tmp_path):
    last = dataclasses.replace(WILD, steps=1, learning_rate=1e38, warm_up=0)
    for _ in range(2):
        with pytest.raises(Diverged, match=r"the loss is (nan|inf) after the last step of 1; no checkpoint"):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=last, progress=False)
        assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"] is False
        assert (tmp_path / "checkpoints" / "checkpoint-1").is_dir()
        assert not (tmp_path / "config.json").exists()
    assert json.loads((tmp_path / "log.json").read_text("utf-8"))
