"""Weight drift, against numpy on the raw models."""

import copy
import dataclasses

import families
import numpy as np
import pytest
from conftest import tiny
from families import randomised

from xlingtox import figures
from xlingtox.evaluation.weight_drift import WeightDrift, weight_drift
from xlingtox.models.hooked import HookedLM


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_drift_equals_numpy(name, tokenizer):
    models = [families.build(name), randomised(families.build(name), seed=3)]
    lms = [HookedLM.load(model, tokenizer=tokenizer) for model in models]
    drift = weight_drift(*lms)
    table = drift.to_frame()
    assert drift.models == tuple(lm.identity() for lm in lms)
    vectors = {"key": families.keys, "value": families.values} | ({"up": families.ups} if name == "llama" else {})
    assert len(table) == len(vectors) * 3 * 40
    for kind, read in vectors.items():
        for layer in range(3):
            first, then = (read(model, name, layer).double().numpy() for model in models)
            own = table[(table.kind == kind) & (table.layer == layer)]
            lengths = np.linalg.norm(first, axis=1), np.linalg.norm(then, axis=1)
            np.testing.assert_allclose(own.cosine, (first * then).sum(1) / lengths[0] / lengths[1], atol=1e-12)
            np.testing.assert_allclose(own.norm_change, lengths[1] / lengths[0] - 1, atol=1e-12)
            assert list(own["index"]) == list(range(40))
    assert figures.weight_drift(drift) == figures.weight_drift(drift.by_layer())


def test_no_drift_and_no_match(model, lm, tokenizer):
    same = weight_drift(lm, HookedLM.load(copy.deepcopy(model), tokenizer=tokenizer)).to_frame()
    assert same.cosine.to_numpy() == pytest.approx(1.0, abs=1e-12)
    assert (same.norm_change == 0).all()
    with pytest.raises(ValueError, match="differ in shape"):
        weight_drift(lm, HookedLM.load(tiny("llama"), tokenizer=tokenizer))


def test_vectors_that_are_zero_have_no_number_and_are_drawn_without(tokenizer, tmp_path):
    """Pruned neurons, or a layer of them."""
    given = families.build("gpt2")
    for layer, rows in ((0, slice(3, 4)), (1, slice(None))):
        given.transformer.h[layer].mlp.c_proj.weight.data[rows] = 0
    moved = randomised(copy.deepcopy(given), seed=4)
    moved.transformer.h[2].mlp.c_proj.weight.data[5] = 0
    drift = weight_drift(*(HookedLM.load(each, tokenizer=tokenizer) for each in (given, moved)))
    table = drift.to_frame()
    rows = table[table.kind == "value"].set_index(["layer", "index"])
    assert rows.loc[(0, 3), ["cosine", "norm_change"]].isna().all()
    assert (np.isnan(rows.loc[(2, 5), "cosine"]), rows.loc[(2, 5), "norm_change"]) == (True, -1)
    by_layer = {row.layer: row for row in drift.by_layer() if row.kind == "value"}
    assert np.isfinite([by_layer[0].norm_change, *by_layer[0].norm_change_range, by_layer[0].cosine]).all()
    assert np.isnan(by_layer[1].norm_change)
    figure = figures.weight_drift(drift)
    assert next(trace for trace in figure.data if trace.name == "value vectors").y[1] is None
    drift.save(tmp_path / "drift.safetensors")
    assert WeightDrift.load(tmp_path / "drift.safetensors") == drift
    assert drift != dataclasses.replace(drift, cosine=np.nan_to_num(drift.cosine))


def test_each_kind_of_vector_has_a_name():
    with pytest.raises(ValueError, match="there are 2 kinds of vectors, but 1 names for them"):
        WeightDrift(("key",), np.zeros((3, 2, 5)), np.zeros((3, 2, 5)))


def test_a_gated_mlp_does_not_match_an_ungated_one_of_the_same_shape(tokenizer):
    one, other = (HookedLM.load(families.build(name), tokenizer=tokenizer) for name in ("opt", "llama"))
    for first, then in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=r"differ in shape: only the MLPs of .*Llama.* are gated"):
            first.check_alike(then)
