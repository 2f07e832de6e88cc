"""Recipes: the paper's settings, and what a recipe or this machine cannot do."""

import dataclasses
import importlib.util
import json
import math
import shutil

import preferences
import pytest
import torch
from preferences import PAIRS, RECIPE, losses
from trl import DPOConfig

from xlingtox.tuning import PAPER_FULL, PAPER_QLORA, Lora, run_folder, tune_dpo, tuner

tuned, untrained = preferences.tuned, preferences.untrained


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
        with pytest.raises(ImportError, match=r"needs the package bitsandbytes: pip install 'xlingtox\[quantised\]'"):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path / "out", recipe=recipe, progress=False)
    assert not (tmp_path / "out").exists()
    tuner._check_packages(dataclasses.replace(RECIPE, optimizer="adamw_torch_8bit"))


@pytest.mark.parametrize("optimizer", ["galore_adamw", "grokadamw", "schedule_free_sgd", "adamw_torch_4bit"])
def test_an_optimizer_that_is_not_there_is_said_before_the_folder_is_claimed(tuned, tmp_path, optimizer):
    """Also where its package is there: what low rank applies to, a recipe does not say."""
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer)
    with pytest.raises(
        (ImportError, ValueError), match=f"the optimizer {optimizer} cannot be used here: .*(install|must|need)"
    ):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    assert not list(tmp_path.iterdir())


def test_bfloat16_that_is_only_emulated_is_not_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or False)
    assert PAPER_FULL.arguments(256, validated=True, on_cpu=False)["bf16"] is False
    assert asked == [{"including_emulation": False}]


def test_bfloat16_is_asked_for_and_the_weights_stay_in_float32(tuned, tmp_path):
    assert PAPER_FULL.arguments(256, validated=True, on_cpu=True)["bf16"] is False
    after = tune_dpo(
        tuned.lm, PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, bfloat16=True), progress=False
    )
    assert after.dtype == torch.float32
    in_float32, in_bfloat16 = ([loss for _, loss, _ in losses(out) if loss] for out in (tuned.folder, tmp_path))
    assert in_bfloat16[0] == pytest.approx(math.log(2), abs=1e-2)
    assert in_bfloat16 == pytest.approx(in_float32, abs=0.05)
    assert in_bfloat16 != in_float32


def test_a_run_of_an_older_version_is_known_by_what_it_did(tuned, tmp_path):
    shutil.copytree(tuned.folder, tmp_path / "older")
    file = tmp_path / "older" / "recipe.json"
    record = json.loads(file.read_text("utf-8"))
    for name in run_folder._LATER:
        del record["recipe"][name]
    file.write_text(json.dumps(record), "utf-8")
    again = tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path / "older", recipe=RECIPE, progress=False)
    assert again.fingerprint() == tuned.after.fingerprint()
    other = dataclasses.replace(RECIPE, bfloat16=True)
    with pytest.raises(ValueError, match="holds another run"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path / "older", recipe=other, progress=False)
