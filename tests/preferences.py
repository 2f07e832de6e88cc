"""For the tests of tuning: a few preference pairs, a recipe of a few steps, fixtures, and readers of a run's log."""

import copy
import json

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
RECIPE = Recipe(steps=6, batch_size=2, learning_rate=1e-3, warm_up=1, max_length=32)


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


@pytest.fixture(scope="module")
def tuned(model, tokenizer, tmp_path_factory):
    """The model that was given (in training mode, as it must stay), its HookedLM, the tuned one, and its folder."""
    given = copy.deepcopy(model).train()
    lm = HookedLM.load(given, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("dpo") / "made" / "for it"
    return given, lm, tune_dpo(lm, PAIRS, output_dir=folder, recipe=RECIPE, progress=False), folder


class Begun(BaseException):
    """Training had begun. Not an error of its own, after which the folder would be left to other runs."""


class Interrupted(KeyboardInterrupt):
    pass


class Reached(KeyboardInterrupt):
    pass


@pytest.fixture
def untrained(monkeypatch):
    class Trainer:
        def __init__(self, *_, **__):
            raise Begun

    monkeypatch.setattr("trl.DPOTrainer", Trainer)


@pytest.fixture
def reached(monkeypatch):
    found = {}

    class Trainer:
        def __init__(self, **options):
            found.update(options)
            raise Reached

    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    return found


# With these validation pairs the loss rises from the first evaluation on.
TURNED = PAIRS.rename_columns({"chosen": "rejected", "rejected": "chosen"})
