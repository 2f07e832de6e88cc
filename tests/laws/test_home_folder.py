"""A tilde is the home folder wherever a path is given: in every `save`, `load`, `output_dir` and loader."""

import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toys import HashScorer

from xlingtox import data
from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Intervention, Offset
from xlingtox.evaluation.compare_models import compare
from xlingtox.evaluation.comparison import Comparison
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring import Cached

NEURONS = NeuronSet.of([(0, 1), (1, 3)])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Make a home folder, and a working folder in which no folder called ~ may appear."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert os.listdir(tmp_path / "here") == []


def test_a_tilde_is_the_home_folder(lm, home):
    probe = Probe(torch.ones(lm.d_model), bias=0.0, accuracy=1.0, auc=1.0, baseline=0.5, n_train=2, n_held_out=2)
    written = generate(lm, ["the cat"], n_samples=2, max_new_tokens=3, progress=False)
    read = collect_activations(lm, ["the cat"], NEURONS, max_new_tokens=3, progress=False)
    vectors = Offset(NEURONS, 0.5).control_vectors(lm)
    diff = compare(
        *(lm, lm, {"en": ["the cat"]}),
        neurons=NEURONS,
        scorer=HashScorer("en"),
        n_samples=2,
        max_new_tokens=3,
        progress=False,
        output_dir="~/texts",
    )
    saved = {"p": probe, "w": written, "r": read, "v": vectors, "d": diff}
    for name, result in saved.items():
        result.save(f"~/{name}")
    Offset(NEURONS, 0.5).save("~/e", lm)
    assert Probe.load("~/p").direction.equal(probe.direction)
    assert Continuations.load("~/w") == written
    assert torch.equal(Activations.load("~/r").sums, read.sums)
    assert ControlVectors.load("~/v").vectors.keys() == vectors.vectors.keys()
    assert Comparison.load("~/d") == diff
    assert Intervention.load("~/e", lm) == Offset(NEURONS, 0.5)
    baked = Offset(NEURONS, 0.5).bake(lm, output_dir="~/baked")
    assert HookedLM.load("~/baked").fingerprint() == baked.fingerprint()
    Cached(HashScorer("en"), path="~/scores.sqlite").score(["a"], ["en"])
    assert {"texts", "baked", "scores.sqlite"} <= {path.name for path in home.iterdir()}


def test_data_are_read_from_the_home_folder(home):
    Dataset.from_dict({"text": ["a", "b"], "lang": ["en", "en"]}).to_json(home / "rows.jsonl")
    assert len(data.from_columns("~/rows.jsonl", {"language": "lang", "prompt": "text"})) == 2
    (home / "en.txt").write_text("idiot\n", "utf-8")
    assert data.word_lists(Path("~"))["en"] == ["idiot"]
