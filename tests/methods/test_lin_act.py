"""Lin-AcT: maps and effect equal NumPy's lines through sorted means, fitted place by place with plain hooks."""

import numpy as np
import pytest
import torch
from families import build
from plain_norms import NORMS, mapped, means
from torch.testing import assert_close

import xlingtox as xt
from xlingtox.methods import LinAcT
from xlingtox.methods.lin_act import line
from xlingtox.models.hooked import HookedLM

TOXIC = ["the cat ran", "the dog sat on the mat", "ein hund", "a house and the cat", "la cama grande"]
CLEAN = [
    "la casa es grande",
    "el gato duerme",
    "das ist eine katze",
    "the house",
    "кот сидит у двери",
    "im haus ist es",
]
LABELLED = [{"text": text, "label": 1} for text in TOXIC] + [{"text": text, "label": 0} for text in CLEAN[:5]]


@pytest.fixture(scope="module", params=NORMS)
def family(request, tokenizer):
    model = build(request.param)
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer)


def expected_maps(name, model, lm, *, incremental):
    """Fit each line with `np.polyfit`, place by place."""
    toxic, clean = lm.token_ids(TOXIC), lm.token_ids(CLEAN[:5])
    places = [(site, layer) for layer in range(lm.n_layers) for site in NORMS[name][1]]
    targets = {place: means(model, name, place, clean) for place in places}
    maps = {}
    for place in places:
        with mapped(model, name, maps if incremental else {}):
            sources = means(model, name, place, toxic)
        pairs = zip(np.sort(sources, 0).T, np.sort(targets[place], 0).T, strict=True)
        maps[place] = np.array([np.polyfit(first, second, 1) for first, second in pairs]).T
    return maps


@pytest.mark.parametrize("incremental", [True, False])
def test_maps_and_effect_are_those_of_plain_hooks(family, incremental):
    name, model, lm = family
    maps = expected_maps(name, model, lm, incremental=incremental)
    fitted = LinAcT(incremental=incremental).fit(lm, LABELLED, progress=False)
    ids, mask = lm.encode(["the cat sat on"])
    for strength in (0.3, 1.0, 1.7):
        partial = {place: (1 - strength + strength * gain, strength * shift) for place, (gain, shift) in maps.items()}
        edit = fitted.at(strength)
        n_steps = 2 * len(NORMS[name][1])
        assert len(edit.steps()) == n_steps
        for (site, _), step in zip(((site, i) for site in NORMS[name][1] for i in (0, 1)), edit.steps(), strict=True):
            kind = 0 if isinstance(step, xt.Scale) else 1
            numbers = np.concatenate([partial[site, layer][kind] for layer in range(lm.n_layers)])
            np.testing.assert_allclose(step.values(), numbers, atol=1e-3, rtol=1e-3)
        with torch.no_grad(), mapped(model, name, partial):
            expected = model(input_ids=ids).logits
        with edit.on(lm):
            assert_close(lm.logits(ids, mask), expected, atol=5e-3, rtol=5e-3)


def test_no_strength_changes_nothing_and_a_whole_one_moves_the_means(family):
    name, model, lm = family
    fitted = LinAcT().fit(lm, LABELLED, progress=False)
    ids, mask = lm.encode(TOXIC)
    with fitted.at(0.0).on(lm):
        assert_close(lm.logits(ids, mask)[mask], lm_logits(lm, ids, mask))
    targets = means(model, name, ("ln1", 2), lm.token_ids(CLEAN[:5]))
    with fitted.at(1.0).on(lm):
        moved = xt.methods.reading.read_pooled(lm, TOXIC, [("ln1", 2)], pool="mean", progress=False)["ln1", 2]
    np.testing.assert_allclose(moved.mean(0), targets.mean(0), atol=1e-3)


def lm_logits(lm, ids, mask):
    return lm.logits(ids, mask)[mask]


def test_a_line_shifts_and_spreads_a_normal_column_and_only_shifts_a_constant_one():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(50, 3, generator=generator)
    sources[:, 2] = 0.1
    targets = (2.5 * sources - 1)[torch.randperm(50, generator=generator)]
    gain, shift = line(sources, targets)
    assert gain.tolist() == pytest.approx([2.5, 2.5, 1.0], rel=1e-4)
    assert shift.tolist() == pytest.approx([-1.0, -1.0, 2.5 * 0.1 - 1 - 0.1], rel=1e-4)


def test_as_many_sentences_of_each_kind_are_drawn(lm):
    more = [*LABELLED, {"text": CLEAN[5], "label": 0}]
    maps = {seed: LinAcT(n_texts=3).fit(lm, more, seed=seed, progress=False).at(1.0) for seed in (0, 1)}
    assert maps[0] == LinAcT(n_texts=3).fit(lm, more, seed=0, progress=False).at(1.0)
    assert maps[0] != maps[1]
    LinAcT().fit(lm, more, progress=False)


def test_what_cannot_be_fitted_is_refused_in_one_line(lm):
    with pytest.raises(ValueError, match="1 sentences of a kind"):
        LinAcT(n_texts=1).fit(lm, LABELLED, progress=False)
    with pytest.raises(ValueError, match="has none of the sites ln2_post"):
        LinAcT(("ln2_post",)).fit(lm, LABELLED, progress=False)
    with pytest.raises(ValueError, match="none are given"):
        LinAcT(()).fit(lm, LABELLED, progress=False)
    with xt.Scale(xt.NeuronSet.of([(0, 1)]), 0.5).on(lm):
        lm.logits(*lm.encode(["the cat"]))
        with pytest.raises(ValueError, match="would be part of what is fitted"):
            LinAcT().fit(lm, LABELLED, progress=False)


def test_other_sites_are_mapped_too(lm):
    edit = LinAcT(("residual", "heads")).fit(lm, LABELLED, progress=False).at(1.0)
    assert [step.neurons.site for step in edit.steps()] == ["heads", "heads", "residual", "residual"]
    with edit.on(lm):
        moved = xt.methods.reading.read_pooled(lm, TOXIC, [("residual", 1)], pool="mean", progress=False)
    targets = xt.methods.reading.read_pooled(lm, CLEAN[:5], [("residual", 1)], pool="mean", progress=False)
    assert_close(moved["residual", 1].mean(0), targets["residual", 1].mean(0), atol=1e-3, rtol=1e-3)
