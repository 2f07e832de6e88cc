import copy
import dataclasses
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import textwrap
import warnings
import weakref
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers
import trl
from conftest import randomised, tiny
from datasets import Dataset
from preferences import PAIRS, PROMPTS, RECIPE
from published import jsonl, table, written
from safetensors.torch import load_file
from tokenizers import processors
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from xlingtox import data, mini
from xlingtox.edits.interventions import Offset, Scale
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import callback, dpo
from xlingtox.tuning.dpo import MINI, PAPER_FULL, PAPER_QLORA, Diverged, Lora, Recipe, tunable_pairs, tune_dpo


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def tuned(model, tokenizer, tmp_path_factory):
    """The model that was given (in training mode, as it must stay), its HookedLM, the tuned one, and its folder."""
    given = copy.deepcopy(model).train()
    lm = HookedLM.load(given, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("dpo") / "made" / "for it"
    return given, lm, tune_dpo(lm, PAIRS, output_dir=folder, recipe=RECIPE, progress=False), folder


@torch.no_grad()
def margin(model, tokenizer):
    """Mean of log p(chosen) - log p(rejected), after the prompt, by the raw model."""

    def log_p(prompt, continuation):
        n = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + continuation)["input_ids"]])
        chance = model(ids).logits[0].log_softmax(-1)
        return sum(float(chance[i - 1, ids[0, i]]) for i in range(n, ids.shape[1]))

    return sum(log_p(row["prompt"], row["chosen"]) - log_p(row["prompt"], row["rejected"]) for row in PAIRS) / len(
        PAIRS
    )


def test_the_rejected_becomes_less_likely_than_the_chosen(tuned, model, tokenizer):
    after = AutoModelForCausalLM.from_pretrained(tuned[3]).eval()
    assert margin(after, tokenizer) > margin(model, tokenizer) + 1


def test_the_given_model_is_left_as_it_was(tuned, model, tokenizer):
    given, lm, _, _ = tuned
    assert same(weights(given), weights(model))
    assert given.training
    assert given.forward.__func__ is type(given).forward
    assert all(weight.grad is None for weight in given.parameters())
    ids, mask = lm.encode(PROMPTS)
    fresh = HookedLM.load(model, tokenizer=tokenizer)
    assert torch.equal(lm.logits(ids, mask), fresh.logits(ids, mask))
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert (lm.tokenizer.eos_token, lm.tokenizer.pad_token) == ("<eos>", "<pad>")


def test_the_tuned_model_is_the_one_in_the_folder(tuned):
    _, lm, after, folder = tuned
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = after.encode(["the cat sat on the"])
    assert_close(after.logits(ids, mask), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after.logits(ids, mask), lm.logits(ids, mask), atol=0.1)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == lm.tokenizer.get_vocab()
    assert not list(folder.rglob("*.bin"))
    assert not list(folder.rglob("*.pt"))


def test_what_was_done_is_written_down(tuned):
    folder = tuned[3]
    record = json.loads((folder / "recipe.json").read_text("utf-8"))
    assert record["recipe"] == dataclasses.asdict(RECIPE)
    assert (record["pairs"], record["finished"]) == (4, True)
    assert record["model"]["fingerprint"] == tuned[1].fingerprint()
    named = {"xlingtox", "torch", "transformers", "trl", "accelerate", "datasets"}
    assert named <= record["versions"].keys() <= named | {"peft", "bitsandbytes"}
    assert record["trl"]["beta"] == 0.1
    log = json.loads((folder / "log.json").read_text("utf-8"))
    assert log[-1]["step"] == RECIPE.steps
    assert [row["step"] for row in log if "rewards/margins" in row] == list(range(1, RECIPE.steps + 1))


def test_the_same_seed_gives_the_same_weights(tuned, tmp_path):
    _, lm, _, folder = tuned
    torch.rand(5)  # whatever else is drawn
    for name, seed in [("again", 0), ("other", 1)]:
        tune_dpo(lm, PAIRS, output_dir=tmp_path / name, recipe=dataclasses.replace(RECIPE, seed=seed), progress=False)
    first, again, other = (
        load_file(out / "model.safetensors") for out in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, bits=None)], ids=["whole", "adapter"])
def test_the_reference_is_the_model_in_memory(model, tokenizer, tmp_path, lora):
    """A model that no folder holds: its first loss is log 2 only if the reference is the very same model."""
    edited = randomised(copy.deepcopy(model), seed=5)
    edited.config._name_or_path = str(tmp_path / "elsewhere")
    model.save_pretrained(tmp_path / "elsewhere")
    lm = HookedLM.load(edited, tokenizer=tokenizer)
    still = dataclasses.replace(RECIPE, steps=1, learning_rate=1e-12, lora=lora)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=still, progress=False)
    log = json.loads((tmp_path / "out" / "log.json").read_text("utf-8"))
    assert log[-1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    ids, mask = lm.encode(["the cat sat on the"])
    with torch.no_grad():
        assert_close(after.logits(ids, mask), edited(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_tuning_can_be_silent(tuned, tmp_path, capfd):
    tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_other_families(name, tokenizer, tmp_path):
    lm = HookedLM.load(tiny(name), tokenizer=tokenizer)
    tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    after = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert losses(tmp_path)[0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert margin(after, tokenizer) > margin(tiny(name), tokenizer) + 1


# --- bad input is refused before training


class Begun(BaseException):
    """Training had begun. Not an error of its own, after which the folder would be left to other runs."""


@pytest.fixture
def untrained(monkeypatch):
    class Trainer:
        def __init__(self, *_, **__):
            raise Begun

    monkeypatch.setattr("trl.DPOTrainer", Trainer)


def but(**columns):
    return Dataset.from_dict(PAIRS.to_dict() | columns)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (PAIRS.remove_columns("rejected"), "no column rejected"),
        (but(chosen=[" sat", None, " es", " "]), r"preference pairs: 2 of 4 have no chosen \(rows 1, 3\)$"),
        (but(rejected=PAIRS["chosen"]), r"4 of 4 have chosen equal to rejected \(rows 0, 1, 2, ...\)"),
        (
            but(chosen=["\ufe0f", "\u180b", "\U000e0100\u0301", " ok"]),
            r"3 of 4 have no chosen \(rows 0, 1, 2\)",
        ),
        (
            but(chosen=["caf\xe9", "a\u200b", "x", "y"], rejected=["cafe\u0301", "a", "y", "x"]),
            r"2 of 4 have chosen equal to rejected \(rows 0, 1\)",
        ),
        (PAIRS.select([]), "no preference pairs"),
        (but(chosen=["\u200b\u3164", "\u2800 ", "\ufeff", " ok"]), r"3 of 4 have no chosen \(rows 0, 1, 2\)"),
        (
            but(prompt=["", *PROMPTS[1:]], chosen=["", "", "x", "y"], rejected=["a", "", "x", "b"]),
            r"1 of 4 have no prompt \(rows 0\); 2 of 4 have no chosen \(rows 0, 1\); 1 of 4 have no rejected "
            r"\(rows 1\); 1 of 4 have chosen equal to rejected \(rows 2\)$",
        ),
    ],
)
def test_bad_pairs(tuned, untrained, tmp_path, pairs, words):
    with pytest.raises(ValueError, match=words):
        tune_dpo(tuned[1], pairs, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", [".", "out", "out/deeper"])
def test_a_folder_that_cannot_be_written(tuned, untrained, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        tune_dpo(tuned[1], PAIRS, output_dir=file / below, recipe=RECIPE, progress=False)
    assert file.read_text() == "mine"


def test_a_transformer_lens_model_cannot_be_tuned(tuned, untrained, tokenizer, tmp_path):
    bridge = HookedLM.load(tuned[1].tl, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="given as a TransformerLens model"):
        tune_dpo(bridge, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


def test_pairs_longer_than_the_model_are_cut(tuned, tmp_path):
    """The default recipe allows 96 tokens, this model has 64 positions."""
    long = but(rejected=[" and the dog ran away from the house" * 6] * 4)
    tune_dpo(
        tuned[1], long, output_dir=tmp_path, recipe=dataclasses.replace(MINI, steps=1, batch_size=2), progress=False
    )


def test_prompts_that_leave_no_room_are_left_out_and_counted(tuned, tmp_path, caplog):
    """TRL drops them without a word."""
    long = but(prompt=[*PROMPTS[:3], "the dog ran away " * 30])
    tune_dpo(tuned[1], long, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert "1 of 4 prompts have more than 31 tokens (rows 3): they are left out" in caplog.text
    assert "preference pairs: 1 of 4" in caplog.text
    record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert (record["pairs"], record["left_out"]) == (3, 1)
    with pytest.raises(ValueError, match=r"4 of 4 prompts have more than 1 tokens \(rows 0, 1, 2, ...\): none leaves"):
        tune_dpo(
            tuned[1],
            PAIRS,
            output_dir=tmp_path / "no",
            recipe=dataclasses.replace(RECIPE, max_prompt_length=1),
            progress=False,
        )


def test_the_model_may_have_another_precision(model, tokenizer, tmp_path):
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.float64)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert after.dtype == torch.float64
    assert isinstance(after.tl.original_model, transformers.GPT2LMHeadModel)


# --- recipes


def test_the_papers_recipes_say_what_trl_would_choose_otherwise():
    """FACTS of the paper's appendix; TRL's own defaults are others in nearly all of these."""
    full = PAPER_FULL.arguments(room=256, validated=True, on_cpu=True)
    paper = {"optim": "rmsprop", "learning_rate": 1e-5, "lr_scheduler_type": "constant_with_warmup"}
    paper |= {"warmup_steps": 150, "per_device_train_batch_size": 4, "max_grad_norm": 10, "beta": 0.1}
    paper |= {"num_train_epochs": 5, "eval_steps": 25, "max_length": 256, "seed": 0, "max_steps": -1}
    paper |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "loss_type": ["sigmoid"]}
    assert full | paper == full
    assert (PAPER_FULL.patience, PAPER_FULL.validation_share, PAPER_FULL.max_prompt_length) == (10, 0.05, 64)
    config = DPOConfig(output_dir="unused", **full)
    assert all(getattr(config, name) == value for name, value in paper.items())
    assert PAPER_QLORA.lora == Lora(rank=64, alpha=16, dropout=0.05, bits=4)
    assert (PAPER_QLORA.epochs, PAPER_QLORA.batch_size, PAPER_QLORA.accumulation) == (20, 1, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 1}, "give one of them"),
        ({"steps": None}, "give one of them"),
        ({"steps": 0}, "steps is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"validation_share": 1.0}, "validation_share is 1"),
        ({"batch_size": -1}, "batch_size is -1: expected at least 1"),
        ({"warm_up": -1}, "warm_up is -1: expected at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"loss_type": "nonsense"}, "loss_type is 'nonsense' .*expected one of 'sigmoid', "),
        ({"optimizer": "adamw"}, "optimizer is 'adamw': expected one of .*adamw_torch"),
        ({"loss_type": "robust"}, r"label_smoothing is 0\.0 with loss_type 'robust': robust needs it"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1 with loss_type 'sigmoid'"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing is 0.5"),
    ],
)
def test_bad_recipes(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(RECIPE, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "lora's rank is 0"),
        ({"alpha": 0}, "lora's alpha is 0"),
        ({"dropout": 2.0}, "lora's dropout is 2.0"),
        ({"bits": 3}, "Lora: bits is 3 .*expected one of 4, 8 or None"),
    ],
)
def test_bad_adapters(changes, words):
    with pytest.raises(ValueError, match=words):
        Lora(**changes)


def test_a_missing_package_is_said_before_anything_is_written(tuned, untrained, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    quantised = dataclasses.replace(RECIPE, optimizer="adamw_bnb_8bit")
    for recipe in (dataclasses.replace(RECIPE, lora=Lora(rank=4, bits=4)), quantised):
        with pytest.raises(ValueError, match=r"needs the package bitsandbytes: pip install 'xlingtox\[quantised\]'"):
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path / "out", recipe=recipe, progress=False)
    assert not (tmp_path / "out").exists()
    dpo._check_packages(dataclasses.replace(RECIPE, optimizer="adamw_torch_8bit"))


def test_what_is_no_model_and_what_is_no_recipe(tuned, untrained, tmp_path):
    with pytest.raises(TypeError, match=r"lm is a GPT2LMHeadModel, expected .*load\(model, tokenizer=\.\.\.\)"):
        tune_dpo(tuned[0], PAIRS, output_dir=tmp_path, recipe=RECIPE)
    with pytest.raises(TypeError, match=r"recipe is 'MINI' .*expected a recipe \(xt\.tuning\.MINI"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe="MINI")


@pytest.mark.parametrize("optimizer", ["galore_adamw", "grokadamw", "schedule_free_sgd", "adamw_torch_4bit"])
def test_an_optimizer_that_is_not_there_is_said_before_the_folder_is_claimed(tuned, tmp_path, optimizer):
    """Also where its package is there: what low rank applies to, a recipe does not say."""
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer)
    with pytest.raises(ValueError, match=f"the optimizer {optimizer} cannot be used here: .*(install|must|need)"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    assert not list(tmp_path.iterdir())


def test_every_optimizer_that_is_there_tunes(tuned, tmp_path):
    for optimizer in ("adamw_torch", "adafactor", "sgd", "adagrad"):
        recipe = dataclasses.replace(RECIPE, steps=2, optimizer=optimizer)
        after = tune_dpo(tuned[1], PAIRS, output_dir=tmp_path / optimizer, recipe=recipe, progress=False)
        assert after.fingerprint() != tuned[1].fingerprint()


def test_a_run_that_came_to_nothing_leaves_the_folder(tuned, tmp_path, monkeypatch):
    def on_train_begin(self, args, state, control, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(callback.Watch, "on_train_begin", on_train_begin)
        with pytest.raises(MemoryError, match=r"while tuning: set the recipe's gradient_checkpointing, or"):
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert not list(tmp_path.iterdir())
    shorter = dataclasses.replace(RECIPE, steps=1)
    tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=shorter, progress=False)
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"]


def test_a_run_that_got_somewhere_keeps_the_folder_when_it_breaks_off(tuned, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, save_every=2)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(callback.Watch, "on_step_begin", on_step_begin)
        with pytest.raises(ZeroDivisionError):
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    with pytest.raises(ValueError, match="holds another run"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


@pytest.mark.parametrize("loss", ["hinge", "ipo", "apo_zero", "apo_down"])
def test_every_loss_prefers_what_was_chosen(tuned, tokenizer, tmp_path, loss):
    tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, loss_type=loss), progress=False)
    log = json.loads((tmp_path / "log.json").read_text("utf-8"))
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert log[5]["rewards/margins"] > 0


def test_pairs_as_they_are_published(tuned, tmp_path):
    """Toxic sentences with neutral rewrites, and prompts with toxic and benign completions."""
    rewrites = table(["toxic", "neutral1"], ["the cat is a fool", "the cat is a friend"], delimiter="\t")
    row = {"Prompt": "the cat", "Completion": " is a fool", "BenignCompletion": " sat on the mat"}
    written(tmp_path, {"paradetox.tsv": rewrites, "RTP_LX_EN.json": jsonl(row, row | {"Prompt": "the dog"})})
    for name, pairs in (
        ("paradetox", data.paradetox(tmp_path / "paradetox.tsv")),
        ("rtp-lx", data.rtp_lx_pairs(tmp_path / "RTP_LX_EN.json")),
    ):
        tune_dpo(
            tuned[1],
            pairs,
            output_dir=tmp_path / name,
            recipe=dataclasses.replace(RECIPE, batch_size=1),
            progress=False,
        )
        assert losses(tmp_path / name)[5][1] < math.log(2)


def test_the_robust_loss_is_another_one(tuned, tmp_path):
    robust = dataclasses.replace(RECIPE, loss_type="robust", label_smoothing=0.2)
    assert (
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=robust, progress=False).fingerprint()
        != tuned[2].fingerprint()
    )
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["trl"]["label_smoothing"] == 0.2


# --- runs


class Interrupted(KeyboardInterrupt):
    pass


def interrupt(monkeypatch, step):
    """Break off after `step` steps, between the steps."""
    real = callback.Watch.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Interrupted

    monkeypatch.setattr(callback.Watch, "on_step_end", on_step_end)


def losses(folder):
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    return [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows if "train_runtime" not in row]


def untimed(folder):
    """The log without how long things took."""
    timed = ("runtime", "per_second")
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]


VALIDATED = dataclasses.replace(RECIPE, steps=9, save_every=2, evaluate_every=3, optimizer="adamw_torch")


# With these validation pairs the loss rises from the first evaluation on.
TURNED = PAIRS.rename_columns({"chosen": "rejected", "rejected": "chosen"})
IMPATIENT = dataclasses.replace(VALIDATED, steps=20, evaluate_every=2, patience=2)
# Two passes a step over four pairs, three times and a half.
PASSES = dataclasses.replace(VALIDATED, steps=None, epochs=3.5, batch_size=1, accumulation=2)


@pytest.mark.parametrize(("recipe", "last"), [(VALIDATED, 9), (IMPATIENT, 6), (PASSES, 7)])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tuned, tmp_path, monkeypatch, step, recipe, last):
    lm = tuned[1]
    whole = tune_dpo(lm, PAIRS, output_dir=tmp_path / "whole", recipe=recipe, validation=TURNED, progress=False)
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
    assert resumed.fingerprint() == whole.fingerprint()
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
            tuned[1], PAIRS, output_dir=tmp_path / name, recipe=recipe, validation=validation, progress=False
        )

    whole, real = tune("whole"), trl.DPOTrainer.save_model

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
    assert tune("cut").fingerprint() == whole.fingerprint()
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def test_a_process_that_was_killed(tmp_path):
    """The miniature, at a random moment of a random step."""
    step = random.SystemRandom().randrange(1, 6)
    moment = random.SystemRandom().choice(["on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_save"])
    step += step % 2 if moment == "on_save" else 0
    pairs = mini.pairs("en").select(range(32))
    recipe = dataclasses.replace(MINI, steps=6, batch_size=4, save_every=2)
    whole = tune_dpo("mini", pairs, output_dir=tmp_path / "whole", recipe=recipe, progress=False)
    code = f"""
        import dataclasses, os, torch
        from xlingtox import data, mini, tuning
        from xlingtox.tuning import callback
        torch.set_num_threads({torch.get_num_threads()})
        def kill(self, args, state, control, **kwargs):
            if state.global_step >= {step}:
                os.kill(os.getpid(), 9)
        setattr(callback.Watch, {moment!r}, kill)
        recipe = dataclasses.replace(tuning.MINI, steps=6, batch_size=4, save_every=2)
        pairs, folder = mini.pairs("en").select(range(32)), {str(tmp_path / "cut")!r}
        tuning.tune_dpo("mini", pairs, output_dir=folder, recipe=recipe, progress=False)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9, (step, moment, killed.stderr)
    resumed = tune_dpo("mini", pairs, output_dir=tmp_path / "cut", recipe=recipe, progress=False)
    assert resumed.fingerprint() == whole.fingerprint(), (step, moment)


def test_a_run_killed_in_its_last_moment_is_cleared(tuned, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, steps=2, save_every=2)

    def clear(_):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(dpo.RunFolder, "clear", clear)
        with pytest.raises(Interrupted):
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    assert (tmp_path / "checkpoints").exists()
    for left in (False, True):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
        record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
        assert (record["finished"], "clearing" in record, "name" in record["model"]) == (True, False, True)
        assert (tmp_path / "checkpoints").exists() == left
        (tmp_path / "checkpoints").mkdir(exist_ok=True)  # later, it is the user's


def test_what_is_written_has_ordinary_permissions(tuned):
    """Those of safetensors would be the user's alone."""
    files = [path for path in tuned[3].rglob("*") if path.is_file()]
    assert (tuned[3] / "model.safetensors") in files
    assert {path.stat().st_mode for path in files} == {(tuned[3] / "config.json").stat().st_mode}


def test_a_finished_run_is_only_loaded(tuned, monkeypatch):
    monkeypatch.setattr("trl.DPOTrainer", None)
    _, lm, after, folder = tuned
    assert tune_dpo(lm, PAIRS, output_dir=folder, recipe=RECIPE, progress=False).fingerprint() == after.fingerprint()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipe": dataclasses.replace(RECIPE, beta=0.2)}, r"another run \(other recipe\)"),
        ({"pairs": PAIRS.select([0, 1, 2])}, r"another run \(other pairs, pairs_hash\)"),
        ({"validation": PAIRS}, r"another run \(other validation, validation_hash\)"),
    ],
)
def test_a_folder_of_another_run_is_refused(tuned, untrained, changed, words):
    with pytest.raises(ValueError, match=words):
        tune_dpo(tuned[1], output_dir=tuned[3], progress=False, **{"pairs": PAIRS, "recipe": RECIPE} | changed)


def test_another_model_is_another_run_and_a_strange_checkpoint_is_none(tuned, untrained, model, tmp_path):
    with pytest.raises(ValueError, match=r"another run \(other model\)"):
        tune_dpo(tuned[2], PAIRS, output_dir=tuned[3], recipe=RECIPE, progress=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a checkpoint that is not of this run"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


@pytest.mark.parametrize(
    "name",
    "checkpoints/checkpoint-1/trainer_state.json base/config.json adapter/mine log.json training_args.bin "
    "model.safetensors tokenizer.json".split(),
)
def test_what_others_left_in_the_folder_is_neither_used_nor_deleted(tuned, untrained, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    with pytest.raises(ValueError, match=rf"holds {name.split('/')[0]}, which .* not its own: give a new folder"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [file]


def test_only_what_the_run_made_is_deleted(tuned, tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("other/training_args.bin", "notes.txt"):
        (tmp_path / name).write_text("mine")
    tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert (tmp_path / "other" / "training_args.bin").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "training_args.bin").exists()


@pytest.mark.parametrize(("text", "words"), [('{"recipe": {', "cannot be read"), ("[]", "holds no object")])
def test_a_record_that_cannot_be_read_is_said_to_be_so(tuned, untrained, tmp_path, text, words):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=f"recipe.json {words}.*: whose run the folder holds is not known, give a new"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


def test_a_model_is_known_again_by_another_path_and_a_tokenizer_by_its_tokens(
    tuned, untrained, tokenizer, tmp_path, monkeypatch
):
    tuned[0].save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("model", tmp_path / "model"):
        with pytest.raises(Begun):
            tune_dpo(name, PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    lm = HookedLM.load(tuned[0], tokenizer=other)
    with pytest.raises(ValueError, match=r"another run \(other tokenizer\)"):
        tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)


def test_nothing_saved_is_not_finished(tuned, tmp_path, monkeypatch):
    """As transformers does with weights that FSDP has sharded."""
    real = trl.DPOTrainer.save_model

    def save_model(self, folder, *args, **options):
        if "checkpoint-" in str(folder):
            real(self, folder, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(trl.DPOTrainer, "save_model", save_model)
        with pytest.raises(RuntimeError, match=r"no weights were saved .*: its checkpoints are kept"):
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"] is False
    assert (
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False).fingerprint()
        == tuned[2].fingerprint()
    )


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
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False).fingerprint()
        == tuned[2].fingerprint()
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
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert not (tmp_path / "base").exists()
    with pytest.raises(Reached):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), weights(tuned[0]))
    assert AutoTokenizer.from_pretrained(tmp_path / "base").eos_token == "<eos>"


def test_a_folder_is_tuned_as_the_model_in_memory_is(tuned, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    after = tune_dpo(tmp_path / "model", PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
    assert after.fingerprint() == tuned[2].fingerprint()


@pytest.mark.parametrize("lora", [None, Lora(rank=4, bits=None)])
@pytest.mark.parametrize("given", ["in memory", "as a folder"])
def test_nothing_tuned_is_in_memory_when_a_model_is_read(tuned, tokenizer, tmp_path, monkeypatch, given, lora):
    """Else reading the tuned model, or the base that an adapter is merged into, would take more memory than a step."""
    held, counts, read = [], [], dpo.loading.from_checkpoint

    class Trainer(trl.DPOTrainer):
        def train(self, **options):
            done = super().train(**options)
            state = [each for row in self.optimizer.state.values() for each in row.values()]
            held.extend(weakref.ref(each) for each in [*self.model.parameters(), *state])
            return done

    def from_checkpoint(*args, **options):
        counts.append(sum(each() is not None for each in held))
        return read(*args, **options)

    tuned[0].save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    monkeypatch.setattr(dpo.loading, "from_checkpoint", from_checkpoint)
    lm = tuned[1] if given == "in memory" else tmp_path / "model"
    tune_dpo(
        lm, PAIRS, output_dir=tmp_path / "out", recipe=dataclasses.replace(RECIPE, steps=1, lora=lora), progress=False
    )
    assert len(held) > 20
    folder = given == "as a folder"
    # The base before it is tuned, the base that an adapter is merged into, and the tuned model.
    assert counts == [0] * (folder + (folder and lora is not None) + 1)


def log_p(model, tokenizer, prompt, continuation):
    ids = torch.tensor([tokenizer(prompt + continuation)["input_ids"] + [0]])
    with torch.no_grad():
        chance = model(ids).logits[0].log_softmax(-1)
    return sum(float(chance[i - 1, ids[0, i]]) for i in range(len(tokenizer(prompt)["input_ids"]), ids.shape[1]))


def test_the_best_weights_by_validation_loss_are_kept(tuned, model, tokenizer, tmp_path):
    """The validation pairs ask for the opposite, so that the loss rises from the first evaluation on."""
    turned = PAIRS.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    recipe = dataclasses.replace(RECIPE, steps=None, epochs=20, evaluate_every=1, patience=3)
    tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=recipe, validation=turned, progress=False)
    curve = [(step, loss) for step, _, loss in losses(tmp_path) if loss is not None]
    best = min(curve, key=lambda row: row[1])
    assert curve[-1][0] == best[0] + 3 < 40
    after = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    by_hand = []
    for row in turned:
        gain = {
            side: log_p(after, tokenizer, row["prompt"], row[side]) - log_p(model, tokenizer, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        }
        by_hand.append(math.log1p(math.exp(-0.1 * (gain["chosen"] - gain["rejected"]))))
    assert sum(by_hand) / len(by_hand) == pytest.approx(best[1], abs=1e-4)


def test_the_share_for_validation_is_held_out_by_seed(tuned):
    recipe = dataclasses.replace(RECIPE, validation_share=0.25)
    parts = tunable_pairs(tuned[1], PAIRS, recipe=recipe)
    assert sorted([*parts.train["prompt"], *parts.validation["prompt"]]) == sorted(PROMPTS)
    assert len(parts.validation) == 1
    others = {
        tunable_pairs(tuned[1], PAIRS, recipe=dataclasses.replace(recipe, seed=seed)).validation[0]["prompt"]
        for seed in range(9)
    }
    assert len(others) > 1


@pytest.mark.parametrize("room", [12, 32])
def test_the_reference_is_read_anew_for_another_length(tuned, tmp_path, room):
    """TRL keeps its log-probabilities by pairs and model, not by how far these are read."""
    recipe = dataclasses.replace(RECIPE, steps=1, learning_rate=1e-12, max_length=room)
    long = but(rejected=[" and the dog ran away from the house"] * 4)
    for name in ("kept", "again"):
        tune_dpo(tuned[1], long, output_dir=tmp_path / name, recipe=recipe, progress=False)
        assert losses(tmp_path / name)[0][1] == pytest.approx(math.log(2), abs=1e-5)


WILD = dataclasses.replace(
    RECIPE, steps=30, learning_rate=1e36, warm_up=3, optimizer="sgd", save_every=1, max_grad_norm=1e30
)


def gives_a_number(checkpoint, tokenizer):
    plain = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return all(plain(torch.tensor([tokenizer(text)["input_ids"]])).logits.isfinite().all() for text in PROMPTS)


def test_a_run_that_diverges_stops_and_names_a_checkpoint_that_is_good(tuned, tokenizer, tmp_path):
    """The newest checkpoint has finite weights too, of which the loss is no number."""
    said = r"at step \d+ of 30; the last good checkpoint is (.*checkpoint-\d+)\. .*learning_rate"
    for _ in range(2):
        with pytest.raises(Diverged, match=said) as raised:
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=WILD, progress=False)
        good = Path(re.search(said, str(raised.value))[1])
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
            tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=last, progress=False)
        assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"] is False
        assert (tmp_path / "checkpoints" / "checkpoint-1").is_dir()
        assert not (tmp_path / "config.json").exists()
    assert json.loads((tmp_path / "log.json").read_text("utf-8"))


# --- precision, dropout, and what is left as it was


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_tuned_in_32(model, tokenizer, tmp_path, dtype):
    """In 16 bits they overflow, or do not move; what is saved is as the source is stored."""
    given = copy.deepcopy(model).to(dtype)
    small = dataclasses.replace(RECIPE, learning_rate=1e-5)
    lm = HookedLM.load(given, tokenizer=tokenizer)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path / "short", recipe=small, progress=False)
    assert after.stored_dtype == dtype
    assert after.dtype == lm.dtype
    whole = HookedLM.load(given.float(), tokenizer=tokenizer)
    tune_dpo(whole, PAIRS, output_dir=tmp_path / "whole", recipe=small, progress=False)
    short, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "whole"))
    assert losses(tmp_path / "short") == losses(tmp_path / "whole")
    assert same(short, {name: weight.to(dtype) for name, weight in expected.items()})


def test_bfloat16_that_is_only_emulated_is_not_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or False)
    assert PAPER_FULL.arguments(256, validated=True, on_cpu=False)["bf16"] is False
    assert asked == [{"including_emulation": False}]


@pytest.mark.parametrize(
    ("name", "field"),
    [("opt", "dropout"), ("xglm", "dropout"), ("bloom", "hidden_dropout"), ("llama", "attention_dropout")],
)
def test_no_dropout_while_training_and_the_configuration_as_it_was(name, field, tokenizer, tmp_path):
    """TRL knows modules of dropout only; else the first loss is not log 2."""
    kind, given = type(families.build(name)), families.build(name)
    setattr(given.config, field, 0.3)
    dropping = kind(copy.deepcopy(given.config))
    dropping.load_state_dict(given.state_dict())
    lm = HookedLM.load(dropping.eval(), tokenizer=tokenizer)
    still = dataclasses.replace(RECIPE, steps=1, batch_size=4, learning_rate=1e-12)
    tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=still, progress=False)
    assert losses(tmp_path)[0][1] == pytest.approx(math.log(2), abs=1e-5)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (getattr(config, field), config.use_cache) == (0.3, given.config.use_cache) == (0.3, True)


def test_dropout_is_switched_off_for_what_reads_the_configuration_as_it_runs():
    """As Falcon does with hidden_dropout."""
    given = families.build("llama")
    given.config.hidden_dropout, given.config.what_reads_dropout = 0.2, "text"
    assert dpo._without_dropout(given)["hidden_dropout"] == 0.2
    assert (given.config.hidden_dropout, given.config.what_reads_dropout) == (0.0, "text")


def test_a_frozen_model_is_tuned_and_random_numbers_go_on(tuned, model, tokenizer, tmp_path):
    frozen = copy.deepcopy(model).requires_grad_(False)
    lm = HookedLM.load(frozen, tokenizer=tokenizer)

    def drawn():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    def seed():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = drawn()
    seed()
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert drawn() == expected
    assert after.fingerprint() == tuned[2].fingerprint()
    assert not any(weight.requires_grad for weight in frozen.parameters())


def test_an_edit_that_tuning_would_leave_out_is_refused(tuned, untrained, tmp_path):
    lm = tuned[1]
    with Offset(NeuronSet.of([(0, 1)]), 1.0).on(lm):
        with pytest.raises(ValueError, match=r"has hooks on it.*edit.bake\(lm\)"):
            tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
        lm.logits(*lm.encode(["the cat"]))
    assert not (tmp_path / "out").exists()


def test_activations_are_computed_again_if_asked_for(tuned, tmp_path, monkeypatch):
    counted, real = [], torch.utils.checkpoint.checkpoint

    def checkpoint(*args, **options):
        counted.append(1)
        return real(*args, **options)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", checkpoint)
    again = dataclasses.replace(RECIPE, gradient_checkpointing=True)
    after = tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=again, progress=False)
    assert len(counted) >= RECIPE.steps * tuned[1].n_layers
    ids, mask = after.encode(["the cat sat on the"])
    assert_close(after.logits(ids, mask), tuned[2].logits(ids, mask), atol=1e-4, rtol=1e-4)
    assert not after.unwrapped().is_gradient_checkpointing


# --- what of the pairs is read


def test_pairs_are_told_apart_by_what_the_model_reads(tuned, tmp_path, caplog):
    begin = " the dog ran away from the house and"
    cut = but(
        prompt=["the cat", "the dog", "t", "la casa"],
        chosen=[begin + " the cat sat" * 5, " sat" * 40, "he cat", " es"],
        rejected=[begin + " das ist ein hund" * 5, " ran", "he dog", " la"],
    )
    recipe = dataclasses.replace(RECIPE, steps=1, max_length=12)
    found = tunable_pairs(tuned[1], cut, recipe=recipe, validation=cut)
    assert (found.left_out, found.cut, found.merged, found.validation_left_out) == ((0,), (1,), (2,), (0,))
    assert found.train["prompt"] == ["the dog", "t", "la casa"]
    assert "preference pairs: 1 of 4 have the same first 12 tokens on both sides (rows 0): they are left out" in (
        caplog.text
    )
    assert "validation pairs: 1 of 4 are cut after 12 tokens (rows 1)" in caplog.text
    assert "in 1 of 4 a token reaches from the prompt into the continuation (rows 2)" in caplog.text
    tune_dpo(tuned[1], cut, output_dir=tmp_path, recipe=recipe, validation=cut, progress=False)
    record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert [record[name] for name in ("left_out", "cut", "merged", "validation_left_out")] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"validation pairs: 1 of 1 have the same first 12 tokens .*: none is left"):
        tunable_pairs(tuned[1], PAIRS, recipe=recipe, validation=cut.select([0]))


def test_faults_of_the_validation_pairs_are_called_theirs(tuned):
    with pytest.raises(ValueError, match="validation pairs: 1 of 4 have no chosen"):
        tunable_pairs(tuned[1], PAIRS, recipe=RECIPE, validation=but(chosen=[" a", "", " b", " c"]))


@pytest.mark.parametrize(("n", "share"), [(2, 0.9), (3, 0.99)])
def test_a_share_leaves_something_to_train_on(tuned, n, share):
    parts = tunable_pairs(tuned[1], PAIRS.select(range(n)), recipe=dataclasses.replace(RECIPE, validation_share=share))
    assert (len(parts.train), len(parts.validation)) == (1, n - 1)


def test_patience_without_validation_pairs_is_refused(tuned, untrained, tmp_path):
    with pytest.raises(ValueError, match="patience is 2, and there are no validation pairs"):
        tune_dpo(
            tuned[1], PAIRS, output_dir=tmp_path / "out", recipe=dataclasses.replace(RECIPE, patience=2), progress=False
        )
    assert not (tmp_path / "out").exists()


# --- adapters

LORA = dataclasses.replace(RECIPE, lora=Lora(rank=4, bits=None), learning_rate=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", "cohere"])
def test_an_adapter_is_kept_and_merged(name, tokenizer, tmp_path):
    """Adapter, merged, saved, hooked: the same logits, and the value vectors of the merged model."""
    peft = pytest.importorskip("peft")
    given = families.build(name)
    lm = HookedLM.load(given, tokenizer=tokenizer)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        after = tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=LORA, progress=False)
    assert not [each for each in warned if "peft" in each.filename]
    ids, mask = after.encode(["the cat sat on the"])
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(given), tmp_path / "adapter").eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(after.logits(ids, mask), adapted(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert_close(after.logits(ids, mask), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after.logits(ids, mask), given(input_ids=ids).logits, atol=1e-2)
    for layer in range(lm.n_layers):
        assert torch.equal(after.value_vectors(layer), families.values(plain, name, layer))
        assert not torch.equal(after.value_vectors(layer), lm.value_vectors(layer))
    instead = json.loads((tmp_path / "recipe.json").read_text("utf-8"))["instead"]
    assert any("tied" in words for words in instead) == (name != "llama")
    assert ("embed_tokens" in str(sorted(adapted.peft_config["default"].target_modules))) == (name == "llama")


def test_an_adapter_names_its_base_where_that_is_what_lies_there(base, tokenizer, tmp_path):
    """What a model in memory remembers to have come from may be another: PEFT writes it down all the same."""
    pytest.importorskip("peft")
    named = tune_dpo(base[1], PAIRS, output_dir=tmp_path / "named", recipe=LORA, progress=False)
    assert HookedLM.load(tmp_path / "named" / "adapter").fingerprint() == named.fingerprint()
    edited = Scale(NeuronSet.of([(0, 1), (1, 3)]), 0.0).bake(HookedLM.load(base[1]))
    sources = {"edited": edited, "loaded": HookedLM.load(base[1]), "adapted": tmp_path / "named" / "adapter"}
    for name, source in sources.items():
        after = tune_dpo(source, PAIRS, output_dir=tmp_path / name, recipe=LORA, progress=False)
        with pytest.raises(ValueError, match="does not name its base"):
            HookedLM.load(tmp_path / name / "adapter")
        if isinstance(source, HookedLM):
            again = HookedLM.load(source.unwrapped(), tokenizer=tokenizer, adapter=tmp_path / name / "adapter")
            ids, mask = after.encode(PROMPTS)
            assert_close(again.logits(ids, mask), after.logits(ids, mask), atol=1e-5, rtol=1e-5)


def test_a_model_with_code_of_its_own_is_tuned_and_baked(base, tmp_path):
    folder = base[1]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    own = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.LlamaForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["LlamaForCausalLM"], "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM as Theirs\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class LlamaForCausalLM(Theirs):\n    config_class = MineConfig\n",
        "utf-8",
    )
    lm = HookedLM.load(folder, trust_remote_code=True)
    assert lm.remote_code
    short = dataclasses.replace(RECIPE, steps=2)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=short, progress=False)
    assert after.remote_code
    assert after.fingerprint() != lm.fingerprint()
    halved = Scale(NeuronSet.of([(0, 1)]), 0.5).bake(lm, output_dir=tmp_path / "baked")
    assert halved.remote_code


def test_an_adapter_that_cannot_be_merged_fails_and_is_kept(tuned, tmp_path, monkeypatch):
    pytest.importorskip("peft")

    def changed(*_):
        raise ValueError("cannot be merged into")

    monkeypatch.setattr("xlingtox.models.adapters.merge_adapter", changed)
    with pytest.raises(ValueError, match="cannot be merged"):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=LORA, progress=False)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "config.json").exists()


# --- what no CPU can run is reached up to the trainer's construction


class Reached(KeyboardInterrupt):
    pass


@pytest.fixture
def reached(monkeypatch):
    found = {}

    class Trainer:
        def __init__(self, **options):
            found.update(options)
            raise Reached

    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    return found


def test_a_quantised_base_is_read_from_the_model_that_was_given(tuned, reached, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    asked, real = {}, dpo.loading.from_checkpoint

    def from_checkpoint(source, bits, trust_remote_code):
        asked.update(source=source, bits=bits)
        return real(source)

    monkeypatch.setattr(dpo.loading, "from_checkpoint", from_checkpoint)
    monkeypatch.setattr(dpo, "_check_packages", lambda _: None)
    recipe = dataclasses.replace(PAPER_QLORA, max_length=32, steps=2, epochs=None)
    with pytest.raises(Reached):
        tune_dpo(tuned[1], PAIRS, output_dir=tmp_path, recipe=recipe, validation=PAIRS, progress=False)
    assert asked == {"source": str(tmp_path / "base"), "bits": 4}
    based = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert same(weights(based), weights(tuned[0]))
    assert (reached["peft_config"].r, reached["peft_config"].lora_alpha) == (64, 16)
    assert reached["args"].gradient_checkpointing
    instead = json.loads((tmp_path / "recipe.json").read_text("utf-8"))["instead"]
    assert "the adapter is merged into the base as it was given, not into the one of 4 bits" in instead


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
    said = [json.loads((tmp_path / f"said-{rank}").read_text()) for rank in (0, 1)]
    # One of them writes what both read.
    assert [main for main, _ in said] == [True, False]
    assert said[0][1] == said[1][1]
    # Two processes with one pair each do what one does with two.
    recipe = Recipe(steps=3, batch_size=2, learning_rate=1e-3, max_length=32)
    alone = tune_dpo(tmp_path / "model", PAIRS, output_dir=tmp_path / "alone", recipe=recipe, progress=False)
    both = HookedLM.load(tmp_path / "out")
    ids, mask = both.encode(["the cat sat on the"])
    assert_close(both.logits(ids, mask), alone.logits(ids, mask), atol=1e-4, rtol=1e-4)
