import numpy as np
import pytest
import torch
from datasets import Dataset
from toys import HashScorer

import xlingtox as xt
from xlingtox.evaluation.stability import Stability, stability

PROMPTS = [
    {"language": "en", "prompt": "the cat sat", "index": 0},
    {"language": "en", "prompt": "the dog", "index": 1},
    {"language": "es", "prompt": "la casa", "index": 0},
    {"language": "es", "prompt": "el gato", "index": 1},
]


@pytest.fixture(scope="module")
def setting(lm):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, lm.d_model, generator=generator)
    probes = {"one": xt.Probe.from_direction(first), "other": xt.Probe.from_direction(first + 0.5 * second)}
    held_out = Dataset.from_dict({"language": ["en"], "text": ["the cat sat on the mat"]})
    return {"probes": probes, "prompts": PROMPTS, "scorer": HashScorer("en", "es"), "held_out": held_out}


@pytest.fixture(scope="module")
def result(lm, setting):
    return stability(lm, **setting, ks=[5, 9], max_new_tokens=4, progress=False)


def test_overlaps_are_counted(lm, setting, result):
    for overlap, k in zip(result.overlaps, (5, 9), strict=True):
        ranked = [set(xt.localize.by_cosine(lm, probe, k=k)) for probe in setting["probes"].values()]
        assert (overlap.first, overlap.second, overlap.k) == ("one", "other", k)
        assert overlap.shared == len(ranked[0] & ranked[1]) / k
        assert overlap.chance == k / (lm.n_layers * lm.d_mlp)


def test_effects_are_those_of_the_edit_by_hand(lm, setting, result):
    unedited, scorer = result.toxicity, setting["scorer"]
    effect = result.effects[2]
    assert (effect.probe, effect.k) == ("other", 5)
    candidates = xt.localize.by_cosine(lm, setting["probes"]["other"], k=5)
    activations = xt.collect_activations(lm, PROMPTS[:2], candidates, max_new_tokens=4, progress=False)
    sources = candidates.weighted(activations.std()).where(activations.mean() > 0)
    assert effect.n_sources == len(sources) > 0
    averages = []
    for edit in (None, xt.Offset(sources, -1.0)):
        if edit is None:
            texts = xt.generate(lm, PROMPTS, max_new_tokens=4, greedy=True, progress=False).texts
        else:
            with edit.on(lm):
                texts = xt.generate(lm, PROMPTS, max_new_tokens=4, greedy=True, progress=False).texts
                perplexity = xt.evaluation.perplexities(lm, setting["held_out"], progress=False)["en"]
        averages.append(float(scorer.score(texts, ["en"] * 4).mean()))
    assert (unedited, effect.toxicity) == pytest.approx(averages)
    assert effect.change.mean == pytest.approx(averages[1] - averages[0])
    assert effect.perplexity == pytest.approx(perplexity, rel=1e-4)


def test_saved_and_loaded_is_equal_and_shown(result, tmp_path):
    result.save(tmp_path / "stability")
    assert Stability.load(tmp_path / "stability") == result
    assert result.to_frame()["probe"].tolist() == ["no edit", "one", "one", "other", "other"]
    assert result.overlap_frame().columns.tolist() == ["first", "second", "k", "shared", "chance"]
    assert "Candidates that two probes share" in result._repr_html_()
    assert repr(result).startswith("Stability(4 sets of neurons: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": {}}, "0 probes and 2 k"),
        ({"ks": [5, 5]}, "a k is given twice"),
        ({"ks": [0]}, "k is 0"),
        ({"dose": 0.0}, "dose is 0.0"),
        ({"dose": np.nan}, "dose is nan"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"source_language": "de"}, "no prompts in the source language 'de'"),
    ],
)
def test_what_is_refused(lm, setting, options, words):
    with pytest.raises(ValueError, match=words):
        stability(lm, **{**setting, "ks": [5, 9], "progress": False} | options)
