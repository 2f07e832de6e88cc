"""The reference's log-probabilities: of visited pairs only, kept for other recipes, and with TRL's own bytes."""

import copy
import dataclasses
import logging
import math
import random

import pytest
import torch
import trl
from datasets import Dataset, load_from_disk
from preferences import RECIPE, Interrupted, same
from safetensors.torch import load_file

from xlingtox.models.hooked import HookedLM
from xlingtox.tuning import tunable_pairs, tune_dpo
from xlingtox.tuning.reference import Kept
from xlingtox.tuning.training import without_dropout

WORDS = "the cat sat on mat and dog ran away from house la casa es grande".split()


def sentence(rng, n):
    return "".join(f" {rng.choice(WORDS)}" for _ in range(n))


def pairs_of_many_lengths(n):
    rng = random.Random(0)
    rows = [{name: sentence(rng, rng.randint(1, 6)) for name in ("prompt", "chosen", "rejected")} for _ in range(n)]
    return Dataset.from_list([row | {"rejected": row["rejected"] + " duerme"} for row in rows])


PAIRS = pairs_of_many_lengths(23)
SHORT = dataclasses.replace(RECIPE, steps=2, batch_size=3, accumulation=2)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of log-probabilities of this test alone."""
    file = tmp_path / "kept" / "reference.sqlite"
    monkeypatch.setattr("xlingtox.tuning.reference.default_path", lambda: file)
    return file


@pytest.fixture
def lm(model, tokenizer):
    return HookedLM.load(model, tokenizer=tokenizer)


@pytest.fixture
def seen(monkeypatch):
    """The pairs, as tokens without padding, that the reference reads and that the steps visit."""
    read = {"reference": [], "steps": []}
    real_reference, real_loss = trl.DPOTrainer.compute_ref_log_probs, trl.DPOTrainer._compute_loss

    def kept(name, inputs):
        rows = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(*(inputs[name] for name in ("input_ids", "attention_mask")), strict=True)
        ]
        half = len(rows) // 2
        read[name].extend(zip(rows[:half], rows[half:], strict=True))

    def compute_ref_log_probs(self, model, inputs):
        kept("reference", inputs)
        return real_reference(self, model, inputs)

    def _compute_loss(self, model, inputs, return_outputs):
        if self.model.training:
            kept("steps", inputs)
        return real_loss(self, model, inputs, return_outputs)

    monkeypatch.setattr(trl.DPOTrainer, "compute_ref_log_probs", compute_ref_log_probs)
    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", _compute_loss)
    return read


def tuned(lm, folder, recipe=SHORT, **options):
    tune_dpo(lm, PAIRS, output_dir=folder, recipe=recipe, progress=False, **options)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "recipe",
    [
        dataclasses.replace(SHORT, steps=5, batch_size=2, seed=3),
        dataclasses.replace(SHORT, steps=None, epochs=0.4),
    ],
)
def test_only_what_the_steps_visit_is_read(lm, file, seen, tmp_path, recipe):
    tuned(lm, tmp_path / "out", recipe)
    assert set(seen["reference"]) == set(seen["steps"])
    assert len(set(seen["steps"])) == (20 if recipe.steps else 12)


def test_the_weights_are_those_of_trl_alone(lm, model, tokenizer, file, tmp_path):
    """TRL alone reads all pairs, in their order and in batches of their own width."""

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    recipe = dataclasses.replace(SHORT, steps=3)
    tunable_pairs(lm, PAIRS, recipe=recipe).tokenized("train", lm).save_to_disk(tmp_path / "tokens")
    plain = copy.deepcopy(model)
    without_dropout(plain)
    arguments = recipe.arguments(recipe.max_length, False, True)
    trainer = Trainer(
        model=plain,
        args=trl.DPOConfig(output_dir=str(tmp_path / "trl"), **arguments),
        train_dataset=load_from_disk(tmp_path / "tokens"),
        processing_class=copy.deepcopy(tokenizer),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "trl"))
    ours = tuned(lm, tmp_path / "ours", recipe)
    assert same(ours, load_file(tmp_path / "trl" / "model.safetensors"))
    assert not same(ours, {name: weight for name, weight in model.state_dict().items() if name in ours})


def test_another_recipe_reads_what_is_kept_and_ends_the_same(lm, file, seen, tmp_path, monkeypatch):
    validation = PAIRS.select(range(4))
    tuned(lm, tmp_path / "first", validation=validation)
    first = set(seen["reference"])
    seen["reference"].clear(), seen["steps"].clear()
    other = dataclasses.replace(SHORT, steps=3, seed=5, learning_rate=1e-4)
    with_kept = tuned(lm, tmp_path / "other", other, validation=validation)
    assert set(seen["steps"]) & first
    assert set(seen["reference"]) == set(seen["steps"]) - first
    monkeypatch.setattr("xlingtox.tuning.reference.default_path", lambda: tmp_path / "other.sqlite")
    assert same(with_kept, tuned(lm, tmp_path / "alone", other, validation=validation))


def test_what_is_kept_is_for_one_model_one_pair_and_one_shape(tmp_path):
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}
    others = [pair | {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [2, 4, 5]}, pair | {"chosen_ids": [6]}]
    model, other = (Kept({"model": name}, tmp_path / "reference.sqlite") for name in ("one", "other"))
    digest = model.digest(pair, 32, (4, 5))
    assert model.digest(pair, 4, (4, 5)) == digest, "no more than these tokens are read"
    different = {model.digest(one, 32, (4, 5)) for one in others} | {other.digest(pair, 32, (4, 5))}
    different |= {model.digest(pair, 3, (4, 5)), model.digest(pair, 32, (3, 5)), model.digest(pair, 32, (4, 6))}
    assert len(different - {digest}) == 6
    model.write({digest: (-1.25, -0.1), b"worthless": (math.nan, -1.0)})
    assert model.read([*different, digest, b"worthless"]) == {digest: (-1.25, -0.1)}


def test_what_was_read_before_an_interrupt_is_not_read_again(lm, file, seen, tmp_path, monkeypatch):
    uninterrupted = tuned(lm, tmp_path / "whole")
    file.unlink()
    whole, real = len(seen["reference"]), trl.DPOTrainer.compute_ref_log_probs
    seen["reference"].clear()

    def interrupted(self, model, inputs):
        if len(seen["reference"]) >= whole // 2:
            raise Interrupted
        return real(self, model, inputs)

    with monkeypatch.context() as patched:
        patched.setattr(trl.DPOTrainer, "compute_ref_log_probs", interrupted)
        with pytest.raises(Interrupted):
            tuned(lm, tmp_path / "out")
    before = set(seen["reference"])
    seen["reference"].clear()
    assert same(tuned(lm, tmp_path / "out"), uninterrupted)
    assert seen["reference"]
    assert not before & set(seen["reference"])


def test_a_file_that_cannot_be_used_is_done_without(lm, file, seen, tmp_path, caplog):
    file.parent.mkdir()
    file.write_bytes(b"no database" * 100)
    with caplog.at_level(logging.WARNING, "xlingtox"):
        tuned(lm, tmp_path / "out")
    said = [record.getMessage() for record in caplog.records if "not kept" in record.getMessage()]
    assert len(said) == 1
    assert str(file) in said[0]
    assert seen["reference"]
    assert file.read_bytes() == b"no database" * 100


def test_a_pair_that_is_not_known_stops_training(lm, file, tmp_path, monkeypatch):
    """If another release visited other pairs than those that were read, nothing would be tuned by chance."""
    monkeypatch.setattr("xlingtox.tuning.run.visited", lambda *_, **__: {0})
    with pytest.raises(RuntimeError, match=r"loss is nan at step 1"):
        tuned(lm, tmp_path / "out")
    assert torch.isfinite(lm.unembedding()).all()
