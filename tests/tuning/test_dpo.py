"""The tuned model: what it prefers, what it is equal to, and what tuning leaves as it was."""

import copy
import dataclasses
import json
import math
import random
import weakref

import families
import numpy as np
import preferences
import pytest
import torch
import transformers
import trl
from conftest import randomised, tiny
from preferences import PAIRS, PROMPTS, RECIPE, but, log_p, losses, margin, same, weights
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from xlingtox.edits.interventions import Offset
from xlingtox.models import loading
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import Lora, tune_dpo
from xlingtox.tuning.training import without_dropout

tuned, untrained = preferences.tuned, preferences.untrained


def test_the_rejected_becomes_less_likely_than_the_chosen(tuned, model, tokenizer):
    after = AutoModelForCausalLM.from_pretrained(tuned.folder).eval()
    assert margin(after, tokenizer) > margin(model, tokenizer) + 1


def test_the_given_model_is_left_as_it_was(tuned, model, tokenizer):
    source, lm, _, _ = tuned
    assert same(weights(source), weights(model))
    assert source.training
    assert source.forward.__func__ is type(source).forward
    assert all(weight.grad is None for weight in source.parameters())
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
    folder = tuned.folder
    record = json.loads((folder / "recipe.json").read_text("utf-8"))
    assert record["recipe"] == dataclasses.asdict(RECIPE)
    assert (record["pairs"], record["finished"]) == (4, True)
    assert record["model"]["fingerprint"] == tuned.lm.fingerprint()
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
    first, again, other_seed = (
        load_file(out / "model.safetensors") for out in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other_seed)


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
    tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_other_families(name, tokenizer, tmp_path):
    lm = HookedLM.load(tiny(name), tokenizer=tokenizer)
    tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    after = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert losses(tmp_path)[0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert margin(after, tokenizer) > margin(tiny(name), tokenizer) + 1


def test_the_model_may_have_another_precision(model, tokenizer, tmp_path):
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.float64)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert after.dtype == torch.float64
    assert isinstance(after.tl.original_model, transformers.GPT2LMHeadModel)


def test_what_is_no_model_and_what_is_no_recipe(tuned, untrained, tmp_path):
    with pytest.raises(TypeError, match=r"lm is a GPT2LMHeadModel, expected .*load\(model, tokenizer=\.\.\.\)"):
        tune_dpo(tuned.source, PAIRS, output_dir=tmp_path, recipe=RECIPE)
    with pytest.raises(TypeError, match=r"recipe is 'MINI' .*expected a recipe \(xt\.tuning\.MINI"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe="MINI")


def test_every_optimizer_that_is_there_tunes(tuned, tmp_path):
    for optimizer in ("adamw_torch", "adafactor", "sgd", "adagrad"):
        recipe = dataclasses.replace(RECIPE, steps=2, optimizer=optimizer)
        after = tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path / optimizer, recipe=recipe, progress=False)
        assert after.fingerprint() != tuned.lm.fingerprint()


@pytest.mark.parametrize("loss", ["hinge", "ipo", "apo_zero", "apo_down"])
def test_every_loss_prefers_what_was_chosen(tuned, tokenizer, tmp_path, loss):
    tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, loss_type=loss), progress=False)
    log = json.loads((tmp_path / "log.json").read_text("utf-8"))
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert log[5]["rewards/margins"] > 0


def test_the_robust_loss_is_another_one(tuned, tmp_path):
    robust = dataclasses.replace(RECIPE, loss_type="robust", label_smoothing=0.2)
    assert (
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=robust, progress=False).fingerprint()
        != tuned.after.fingerprint()
    )
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["trl"]["label_smoothing"] == 0.2


def test_a_folder_is_tuned_as_the_model_in_memory_is(tuned, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    after = tune_dpo(tmp_path / "model", PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
    assert after.fingerprint() == tuned.after.fingerprint()


@pytest.mark.parametrize("lora", [None, Lora(rank=4, bits=None)])
@pytest.mark.parametrize("kind", ["in memory", "as a folder"])
def test_nothing_tuned_is_in_memory_when_a_model_is_read(tuned, tokenizer, tmp_path, monkeypatch, kind, lora):
    """Else reading the tuned model, or the base that an adapter is merged into, would take more memory than a step."""
    held, counts, read = [], [], loading.from_checkpoint

    class Trainer(trl.DPOTrainer):
        def train(self, **options):
            done = super().train(**options)
            state = [tensor for row in self.optimizer.state.values() for tensor in row.values()]
            held.extend(weakref.ref(tensor) for tensor in [*self.model.parameters(), *state])
            return done

    def from_checkpoint(*args, **options):
        counts.append(sum(tensor() is not None for tensor in held))
        return read(*args, **options)

    tuned.source.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    monkeypatch.setattr(loading, "from_checkpoint", from_checkpoint)
    lm = tuned.lm if kind == "in memory" else tmp_path / "model"
    tune_dpo(
        lm, PAIRS, output_dir=tmp_path / "out", recipe=dataclasses.replace(RECIPE, steps=1, lora=lora), progress=False
    )
    assert len(held) > 20
    folder = kind == "as a folder"
    # The base before it is tuned, the base that an adapter is merged into, and the tuned model.
    assert counts == [0] * (folder + (folder and lora is not None) + 1)


def test_the_best_weights_by_validation_loss_are_kept(tuned, model, tokenizer, tmp_path):
    """The validation pairs ask for the opposite, so that the loss rises from the first evaluation on."""
    turned = PAIRS.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    recipe = dataclasses.replace(RECIPE, steps=None, epochs=20, evaluate_every=1, patience=3)
    tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=recipe, validation=turned, progress=False)
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


@pytest.mark.parametrize("room", [12, 32])
def test_the_reference_is_read_anew_for_another_length(tuned, tmp_path, room):
    """TRL keeps its log-probabilities by pairs and model, not by how far these are read."""
    recipe = dataclasses.replace(RECIPE, steps=1, learning_rate=1e-12, max_length=room)
    long = but(rejected=[" and the dog ran away from the house"] * 4)
    for name in ("kept", "again"):
        tune_dpo(tuned.lm, long, output_dir=tmp_path / name, recipe=recipe, progress=False)
        assert losses(tmp_path / name)[0][1] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_tuned_in_32(model, tokenizer, tmp_path, dtype):
    """Weights of 16 bits overflow, or do not move. The tuned weights are saved in the dtype of the source."""
    source = copy.deepcopy(model).to(dtype)
    small = dataclasses.replace(RECIPE, learning_rate=1e-5)
    lm = HookedLM.load(source, tokenizer=tokenizer)
    after = tune_dpo(lm, PAIRS, output_dir=tmp_path / "short", recipe=small, progress=False)
    assert after.stored_dtype == dtype
    assert after.dtype == lm.dtype
    float_lm = HookedLM.load(source.float(), tokenizer=tokenizer)
    tune_dpo(float_lm, PAIRS, output_dir=tmp_path / "whole", recipe=small, progress=False)
    short, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "whole"))
    assert losses(tmp_path / "short") == losses(tmp_path / "whole")
    assert same(short, {name: weight.to(dtype) for name, weight in expected.items()})


@pytest.mark.parametrize(
    ("name", "field"),
    [("opt", "dropout"), ("xglm", "dropout"), ("bloom", "hidden_dropout"), ("llama", "attention_dropout")],
)
def test_no_dropout_while_training_and_the_configuration_as_it_was(name, field, tokenizer, tmp_path):
    """TRL knows modules of dropout only; else the first loss is not log 2."""
    kind, source = type(families.build(name)), families.build(name)
    setattr(source.config, field, 0.3)
    dropping = kind(copy.deepcopy(source.config))
    dropping.load_state_dict(source.state_dict())
    lm = HookedLM.load(dropping.eval(), tokenizer=tokenizer)
    still = dataclasses.replace(RECIPE, steps=1, batch_size=4, learning_rate=1e-12)
    tune_dpo(lm, PAIRS, output_dir=tmp_path, recipe=still, progress=False)
    assert losses(tmp_path)[0][1] == pytest.approx(math.log(2), abs=1e-5)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (getattr(config, field), config.use_cache) == (0.3, source.config.use_cache) == (0.3, True)


def test_dropout_is_switched_off_for_what_reads_the_configuration_as_it_runs():
    """Falcon reads hidden_dropout this way."""
    source = families.build("llama")
    source.config.hidden_dropout, source.config.what_reads_dropout = 0.2, "text"
    assert without_dropout(source)["hidden_dropout"] == 0.2
    assert (source.config.hidden_dropout, source.config.what_reads_dropout) == (0.0, "text")


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
    assert after.fingerprint() == tuned.after.fingerprint()
    assert not any(weight.requires_grad for weight in frozen.parameters())


def test_an_edit_that_tuning_would_leave_out_is_refused(tuned, untrained, tmp_path):
    lm = tuned.lm
    with Offset(NeuronSet.of([(0, 1)]), 1.0).on(lm):
        with pytest.raises(ValueError, match=r"has hooks on it.*edit.bake\(lm\)"):
            tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
        lm.logits(*lm.encode(["the cat"]))
    assert not (tmp_path / "out").exists()


def test_a_transformer_lens_model_cannot_be_tuned(tuned, untrained, tokenizer, tmp_path):
    bridge = HookedLM.load(tuned.lm.tl, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="given as a TransformerLens model"):
        tune_dpo(bridge, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


def test_activations_are_computed_again_if_asked_for(tuned, tmp_path, monkeypatch):
    counted, real = [], torch.utils.checkpoint.checkpoint

    def checkpoint(*args, **options):
        counted.append(1)
        return real(*args, **options)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", checkpoint)
    again = dataclasses.replace(RECIPE, gradient_checkpointing=True)
    after = tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=again, progress=False)
    assert len(counted) >= RECIPE.steps * tuned.lm.n_layers
    ids, mask = after.encode(["the cat sat on the"])
    assert_close(after.logits(ids, mask), tuned.after.logits(ids, mask), atol=1e-4, rtol=1e-4)
    assert not after.unwrapped().is_gradient_checkpointing
