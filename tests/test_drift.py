"""Weight drift, against numpy on the raw models."""

import copy

import families
import numpy as np
import pytest
from conftest import tiny
from families import randomised

from xlingtox import figures
from xlingtox.drift import by_layer, weight_drift
from xlingtox.lm import HookedLM


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_drift_equals_numpy(name, tokenizer):
    models = [families.build(name), randomised(families.build(name), seed=3)]
    table = weight_drift(*(HookedLM.load(model, tokenizer=tokenizer) for model in models))
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
    assert figures.weight_drift(by_layer(table)).data


def test_no_drift_and_no_match(model, lm, tokenizer):
    same = weight_drift(lm, HookedLM.load(copy.deepcopy(model), tokenizer=tokenizer))
    assert same.cosine.to_numpy() == pytest.approx(1.0, abs=1e-12)
    assert (same.norm_change == 0).all()
    with pytest.raises(ValueError, match="differ in shape"):
        weight_drift(lm, HookedLM.load(tiny("llama"), tokenizer=tokenizer))
