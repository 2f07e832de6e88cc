import numpy as np
import pytest
import raw
import torch

from xlingtox.localize import by_cosine
from xlingtox.probe import Probe


def probe_of(direction):
    return Probe(torch.as_tensor(direction, dtype=torch.float32), 0.0, 0.5, 0.5, 0.5, 1, 1)


DIRECTION = np.random.default_rng(0).normal(size=32)


@pytest.mark.parametrize("k", [1, 7, None])
def test_by_cosine_equals_numpy(family, k):
    k = k or family.lm.n_neurons
    vectors = np.concatenate([raw.values(family.model, layer).double().numpy() for layer in range(2)])
    cosines = vectors @ DIRECTION / np.linalg.norm(vectors, axis=1) / np.linalg.norm(DIRECTION)
    best = np.argsort(-cosines, kind="stable")[:k]
    found = by_cosine(family.lm, probe_of(DIRECTION), k=k)
    assert list(found) == [(int(i) // family.lm.d_mlp, int(i) % family.lm.d_mlp) for i in best]
    np.testing.assert_allclose(found.scores, cosines[best], atol=1e-6)


def test_the_direction_has_a_sign_and_no_length(lm):
    found = by_cosine(lm, probe_of(DIRECTION), k=5)
    assert list(by_cosine(lm, probe_of(7 * DIRECTION), k=5)) == list(found)
    assert not set(by_cosine(lm, probe_of(-DIRECTION), k=5)) & set(found)


@pytest.mark.parametrize("k", [0, -1, 97])
def test_an_impossible_k(lm, k):
    with pytest.raises(ValueError, match=f"k is {k}: .* has 96 neurons"):
        by_cosine(lm, probe_of(DIRECTION), k=k)


def test_a_probe_of_another_width(lm):
    with pytest.raises(ValueError, match=r"width \(16,\).* d_model 32"):
        by_cosine(lm, probe_of(np.ones(16)), k=1)
