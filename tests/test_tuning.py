import copy
import dataclasses
import json
import math

import pytest
import torch
import transformers
from conftest import randomised, tiny
from datasets import Dataset
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from xlingtox.folders import writable_folder
from xlingtox.lm import HookedLM
from xlingtox.tuning import MINI, Recipe, tune_dpo

PROMPTS = ["the cat", "the dog", "la casa", "das ist ein hund"]
PAIRS = Dataset.from_dict(
    {
        "prompt": PROMPTS,
        "chosen": [" sat on the mat", " ran away", " es grande", " im haus"],
        "rejected": [" ran from the house", " sat", " duerme en la cama", " und eine katze"],
        "source": ["another column"] * 4,
    }
)
RECIPE = Recipe(steps=6, batch_size=2, learning_rate=1e-3, warm_up=1, max_length=32)


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
    return given, lm, tune_dpo(lm, PAIRS, folder, RECIPE, progress=False), folder


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
    assert record["pairs"] == 4
    assert {"torch", "transformers", "trl"} == record["versions"].keys()
    log = json.loads((folder / "log.json").read_text("utf-8"))
    assert log[-1]["step"] == RECIPE.steps


def test_the_same_seed_gives_the_same_weights(tuned, tmp_path):
    _, lm, _, folder = tuned
    torch.rand(5)  # whatever else is drawn
    for name, seed in [("again", 0), ("other", 1)]:
        tune_dpo(lm, PAIRS, tmp_path / name, dataclasses.replace(RECIPE, seed=seed), progress=False)
    first, again, other = (
        load_file(out / "model.safetensors") for out in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other)


def test_the_reference_is_the_model_in_memory(model, tokenizer, tmp_path):
    """A model that no folder holds: its first loss is log 2 only if the reference is the very same model."""
    edited = randomised(copy.deepcopy(model), seed=5)
    edited.config._name_or_path = str(tmp_path / "elsewhere")
    model.save_pretrained(tmp_path / "elsewhere")
    lm = HookedLM.load(edited, tokenizer=tokenizer)
    still = dataclasses.replace(RECIPE, steps=1, learning_rate=1e-12)
    after = tune_dpo(lm, PAIRS, tmp_path / "out", still, progress=False)
    log = json.loads((tmp_path / "out" / "log.json").read_text("utf-8"))
    assert log[-1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    ids, mask = lm.encode(["the cat sat on the"])
    with torch.no_grad():
        assert_close(after.logits(ids, mask), edited(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_tuning_can_be_silent(tuned, tmp_path, capfd):
    tune_dpo(tuned[1], PAIRS, tmp_path, dataclasses.replace(RECIPE, steps=1), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_other_families(name, tokenizer, tmp_path):
    lm = HookedLM.load(tiny(name), tokenizer=tokenizer)
    after = tune_dpo(lm, PAIRS, tmp_path, dataclasses.replace(RECIPE, steps=2), progress=False)
    assert after.fingerprint() != lm.fingerprint()
    assert after.d_mlp == lm.d_mlp


# --- bad input is refused before training


@pytest.fixture
def untrained(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("training had begun")

    monkeypatch.setattr("trl.DPOTrainer", fail)


def but(**columns):
    return Dataset.from_dict(PAIRS.to_dict() | columns)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (PAIRS.remove_columns("rejected"), "no column rejected"),
        (but(chosen=[" sat", None, " es", " "]), "row 1 has no chosen; row 3 has no chosen"),
        (but(rejected=PAIRS["chosen"]), "row 0 has chosen equal to rejected.*and 1 more"),
        (PAIRS.select([]), "no preference pairs"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "expected a datasets.Dataset"),
    ],
)
def test_bad_pairs(tuned, untrained, tmp_path, pairs, words):
    with pytest.raises(ValueError, match=words):
        tune_dpo(tuned[1], pairs, tmp_path / "out", RECIPE, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", [".", "out", "out/deeper"])
def test_a_folder_that_cannot_be_written(tuned, untrained, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        tune_dpo(tuned[1], PAIRS, file / below, RECIPE, progress=False)
    assert file.read_text() == "mine"


def test_a_transformer_lens_model_cannot_be_tuned(tuned, untrained, tokenizer, tmp_path):
    bridge = HookedLM.load(tuned[1].tl, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="given as a TransformerLens model"):
        tune_dpo(bridge, PAIRS, tmp_path, RECIPE, progress=False)


def test_pairs_longer_than_the_model_are_cut(tuned, tmp_path):
    """The default recipe allows 96 tokens, this model has 64 positions."""
    long = but(rejected=[" and the dog ran away from the house" * 6] * 4)
    tune_dpo(tuned[1], long, tmp_path, dataclasses.replace(MINI, steps=1, batch_size=2), progress=False)


@pytest.mark.parametrize("rows", [1, 4])
def test_prompts_that_leave_no_room_are_refused_by_row(tuned, tmp_path, rows):
    """Else TRL drops them without a word."""
    long = but(prompt=[*PROMPTS[rows:], *["the dog ran away " * 30] * rows])
    with pytest.raises(ValueError, match=f"row {4 - rows}"):
        tune_dpo(tuned[1], long, tmp_path, dataclasses.replace(RECIPE, steps=1), progress=False)


def test_writable_folder(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_model_may_have_another_precision(model, tokenizer, tmp_path):
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.float64)
    after = tune_dpo(lm, PAIRS, tmp_path, dataclasses.replace(RECIPE, steps=1), progress=False)
    assert after.dtype == torch.float64
    assert isinstance(after.tl.original_model, transformers.GPT2LMHeadModel)
