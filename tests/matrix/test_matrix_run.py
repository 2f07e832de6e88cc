"""The transfer matrix: its cells by hand, resuming, refusals, processes."""

import dataclasses
import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import build
from toys import HashScorer, NeverAsked, value_or_refusal

from xlingtox import matrix
from xlingtox.data.sides import ordered_pairs
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import soundness
from xlingtox.evaluation.fluency import conditional_perplexity, perplexities
from xlingtox.matrix import TransferMatrix, runs, transfer_matrix
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import Recipe, tune_dpo

CODES = ("en", "es", "de")
WORDS = {"en": ("the cat", " sat", " ran"), "es": ("la casa", " es", " duerme"), "de": ("das ist", " ein", " eine")}
PAIRS = [
    {"language": code, "prompt": f"{prompt} {i}", "chosen": f"{good} {i}", "rejected": f"{bad} {i}"}
    for code, (prompt, good, bad) in WORDS.items()
    for i in range(4)
]
PROMPTS = Dataset.from_list(
    [
        {"language": code, "prompt": f"{WORDS[code][0]} {number}", "index": number}
        # German has fewer prompts.
        for code, numbers in (("de", (4, 7)), ("en", (4, 1, 7)), ("es", (7, 4, 1)))
        for number in numbers
    ]
)
HELD_OUT = Dataset.from_list(
    [{"language": code, "text": f"{words[0]} {words[1]} {i}"} for code, words in WORDS.items() for i in range(2)]
)
NEURONS = NeuronSet.of([(0, 3), (0, 9), (1, 5)])
RECIPE = Recipe(steps=2, batch_size=2, learning_rate=1e-2, warm_up=0, max_length=32, end_token=False)
SCORER = HashScorer(*CODES)
SIZES = {"n_samples": 2, "max_new_tokens": 5, "seed": 3}


def run(lm, folder, **options):
    given = {"pairs": PAIRS, "prompts": PROMPTS, "scorer": SCORER, "recipe": RECIPE, "held_out": HELD_OUT, **SIZES}
    given |= {"neurons": NEURONS, "output_dir": folder, "progress": False} | options
    return transfer_matrix(lm, given.pop("pairs"), given.pop("prompts"), **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix") / "made" / "for it"


@pytest.fixture(scope="module")
def measured(lm, folder):
    return run(lm, folder)


def of_language(rows, code):
    return [row for row in rows if row["language"] == code]


def test_each_cell_equals_what_calls_by_hand_give(lm, folder, measured, tmp_path):
    ordered = ordered_pairs(Dataset.from_list(of_language(PAIRS, "es")), "shuffled", seed=3)
    shuffled = tune_dpo(lm, ordered, output_dir=tmp_path / "es", recipe=RECIPE, progress=False)
    models = {0: lm, 2: HookedLM.load(folder / "tuned" / "es"), 5: shuffled}
    own = generate(lm, PROMPTS, **SIZES, progress=False)
    reference = soundness.Reference.measure(lm, own, HELD_OUT, progress=False)
    for number, model in models.items():
        written = generate(model, PROMPTS, **SIZES, progress=False)
        kinds = soundness.kinds(written, conditional_perplexity(lm, written, progress=False), reference)
        scores = SCORER.score(written.texts, written.row_languages).reshape(-1, 2)
        read = collect_activations(model, PROMPTS, NEURONS, max_new_tokens=5, progress=False, writer=lm)
        by_prompt = (read.values.mean(2).sum(1) / read.mask.sum(1)).numpy()
        fluency = perplexities(model, HELD_OUT, progress=False)
        for target, code in enumerate(CODES):
            rows = [i for i, prompt in enumerate(PROMPTS) if prompt["language"] == code]
            expected = {
                "emt": scores[rows].max(1),
                "average_toxicity": scores[rows].mean(1),
                "toxicity_probability": (scores[rows].max(1) >= 0.5) * 1.0,
                "degenerate": (np.array(kinds).reshape(-1, 2)[rows] != "sound").mean(1),
                "activation": by_prompt[rows],
            }
            for name, values in expected.items():
                cell = measured.values[name][number, target]
                np.testing.assert_allclose(cell[: len(rows)], values, rtol=1e-5, atol=1e-7, err_msg=f"{name} {code}")
                assert np.isnan(cell[len(rows) :]).all()
            np.testing.assert_allclose(measured.perplexity[number, target], fluency[code], rtol=1e-5)


def test_the_matrix_says_what_was_asked(lm, measured):
    assert measured.sources == measured.targets == CODES
    assert measured.has_shuffled
    assert measured.perplexity.shape == (7, 3)
    assert measured.model == lm.identity()
    assert measured.recipe["steps"] == 2
    assert measured.scorer.name == "hash"
    assert set(measured.properties) == {"same_script", "same_family"}
    assert measured.properties["same_script"].all()
    assert measured.properties["same_family"].tolist() == np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).tolist()
    # Translations have one number: 4, 1 and 7 of English are 4, 7 of German and 7, 4, 1 of Spanish.
    four, one, seven = measured.meanings[CODES.index("en")].tolist()
    assert measured.meanings[CODES.index("es")].tolist() == [seven, four, one]
    assert measured.meanings[CODES.index("de")].tolist() == [four, seven, -1]
    # Each model is another one, and random neurons are not the neurons.
    values = measured.values
    assert len({values["average_toxicity"][row].tobytes() for row in range(7)}) == 7
    assert not np.allclose(values["activation"], values["activation_control"], equal_nan=True)
    table = measured.to_frame()
    assert len(table[table.measure == "emt"]) == 9


def test_the_random_state_is_left_as_it_was(lm, folder, measured):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    forget(folder, "tuned-es-de")
    assert run(lm, folder) == measured
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected  # noqa: NPY002


def forget(folder, *names):
    for name in names:
        (folder / "cells" / f"{name}.safetensors").unlink()
