"""Preference pairs, a recipe of a few steps, fixtures and readers of logs, for the tests of tuning."""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset

from xlingtox.models.hooked import HookedLM
from xlingtox.tuning import Recipe, tune_dpo

PROMPTS = ["the cat", "the dog", "la casa", "das ist ein hund"]
PAIRS = Dataset.from_dict(
    {
        "prompt": PROMPTS,
        "chosen": [" sat on the mat", " ran away", " es grande", " im haus"],
        "rejected": [" ran from the house", " sat", " duerme en la cama", " und eine katze"],
        "source": ["another column"] * 4,
    }
)
RECIPE = Recipe(steps=6, batch_size=2, learning_rate=1e-3, warm_up=1, max_length=32, end_token=True)


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(folder):
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    return [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows if "train_runtime" not in row]


def but(**columns):
    return Dataset.from_dict(PAIRS.to_dict() | columns)


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


def log_p(model, tokenizer, prompt, continuation):
    ids = torch.tensor([tokenizer(prompt + continuation)["input_ids"] + [0]])
    with torch.no_grad():
        chance = model(ids).logits[0].log_softmax(-1)
    return sum(float(chance[i - 1, ids[0, i]]) for i in range(len(tokenizer(prompt)["input_ids"]), ids.shape[1]))


class Tuned(NamedTuple):
    """A tuned model: the source in training mode, in which it must stay, its HookedLM, the tuned one, its folder."""

    source: Any
    lm: HookedLM
    after: HookedLM
    folder: Path


@pytest.fixture(scope="module")
def tuned(model, tokenizer, tmp_path_factory):
    source = copy.deepcopy(model).train()
    lm = HookedLM.load(source, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("dpo") / "made" / "for it"
    return Tuned(source, lm, tune_dpo(lm, PAIRS, output_dir=folder, recipe=RECIPE, progress=False), folder)


class Begun(BaseException):
    """Training had begun. It is no Exception, after which the run would give its folder back."""


class Interrupted(KeyboardInterrupt):
    """The user broke off a run."""


class Reached(KeyboardInterrupt):
    """The trainer was about to be made."""


@pytest.fixture
def untrained(monkeypatch):
    class Trainer:
        def __init__(self, *_, **__):
            raise Begun

    monkeypatch.setattr("trl.DPOTrainer", Trainer)


@pytest.fixture
def reached(monkeypatch):
    options_of_trainer = {}

    class Trainer:
        def __init__(self, **options):
            options_of_trainer.update(options)
            raise Reached

    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    return options_of_trainer


# With these validation pairs the loss rises from the first evaluation on.
TURNED = PAIRS.rename_columns({"chosen": "rejected", "rejected": "chosen"})
