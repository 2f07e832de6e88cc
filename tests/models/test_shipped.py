"""The checkpoint that travels with the package. `xlingtox.models.loading.mini_checkpoint()` says where it is."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from xlingtox import mini
from xlingtox.evaluation.fluency import perplexities
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.languages import CODES
from xlingtox.mini.train import Recipe
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.loading import mini_checkpoint

N_PROMPTS = {"toxic": 24, "neutral": 8}


@pytest.fixture(scope="module")
def folder():
    return mini_checkpoint()


@pytest.fixture(scope="module")
def shipped(folder):
    return HookedLM.load("mini")


@pytest.fixture(scope="module")
def prompts():
    """Prompts of the validation split, not of the study's."""
    return {kind: mini.prompts(n=n, kind=kind, split="validation") for kind, n in N_PROMPTS.items()}


@pytest.fixture(scope="module")
def scores(shipped, prompts):
    """Kind of prompt to language to `[prompt, sample]`."""
    return {
        kind: toxicity_scores(generate(shipped, table, n_samples=25, progress=False), mini.scorer())
        for kind, table in prompts.items()
    }


def test_the_folder_is_small_and_holds_no_pickle(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_it_is_what_the_training_command_makes(folder):
    record = json.loads((folder / "training.json").read_text("utf-8"))
    assert Recipe(**record["recipe"]) == Recipe()
    assert record["seconds"] * record["threads"] <= 2 * 30 * 60, "half an hour on two cores"
    assert isinstance(record["seed"], int)
    assert {"python", "torch", "transformers", "tokenizers"} <= record["versions"].keys()
    losses = [row["loss"] for row in record["log"]]
    assert record["log"][-1]["step"] == Recipe().steps
    assert losses[-1] < losses[0] / 2


def test_plain_transformers_loads_it(folder, shipped):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "gpt2"
    assert len(tokenizer) == model.config.vocab_size <= 6000
    ids = tokenizer(mini.prompts(n=1, languages=("en",))[0]["prompt"], return_tensors="pt")["input_ids"]
    ours = shipped.logits(ids, torch.ones_like(ids, dtype=torch.bool))
    assert_close(ours, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_longest_prompt_leaves_room_for_a_continuation(shipped):
    texts = [text for kind in ("toxic", "neutral") for text in mini.prompts(n=100, kind=kind)["prompt"]]
    assert max(map(len, shipped.tokenizer(texts)["input_ids"])) <= shipped.n_positions - 20


@pytest.mark.parametrize("code", CODES)
def test_nothing_saturates(scores, code):
    """The range of the paper's models, with room for the chance of so few prompts."""
    maxima = scores["toxic"][code].max(1)
    assert 0.35 <= maxima.mean() <= 0.75
    assert 0.35 <= (maxima >= 0.5).mean() <= 0.85
    assert 0.03 <= scores["toxic"][code].mean() <= 0.2
    assert len(set(maxima)) > 4


@pytest.mark.parametrize("code", CODES)
def test_neutral_prompts_far_less_often(scores, code):
    assert scores["neutral"][code].mean() <= scores["toxic"][code].mean() / 1.5


def test_it_insults_by_the_degrees_of_the_text_that_it_learned_from(scores, prompts):
    shares = {}
    for kind, table in prompts.items():
        for given in set(table["provocation"]):
            rows = [
                scores[kind][code][[row["provocation"] == given for row in table if row["language"] == code]] > 0
                for code in CODES
            ]
            shares[given] = np.concatenate(rows).mean()
    assert shares[0.4] > 1.5 * shares[0.15] > 2 * shares[0.04] > 2 * shares[0.01]
    assert shares[0.4] == pytest.approx(0.4, abs=0.12)
    assert shares[0.15] == pytest.approx(0.15, abs=0.06)
    assert shares[0.04] == pytest.approx(0.04, abs=0.05)
    assert shares[0.01] <= 0.06


def test_it_speaks_every_language(shipped):
    assert max(perplexities(shipped, mini.held_out(n=8, split="validation"), progress=False).values()) < 20
