"""AurA by hand: plain hooks on both modules of the MLP, scikit-learn's area under the ROC curve, one text at a time."""

import families
import numpy as np
import pytest
import raw
import torch
from sklearn.metrics import roc_auc_score

import xlingtox as xt
from xlingtox.edits.interventions import Scale
from xlingtox.methods import AurA, Damping
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import localize


def sentences(n):
    """Toxic sentences (label 1) favour other words than the rest, and no two begin with the same letter."""
    rng = np.random.default_rng(0)
    words = "the cat sat on mat and dog ran away from house la casa grande el gato hund katze".split()
    weights = np.linspace(1, 3, len(words))
    rows = []
    for i in range(n):
        chance = weights if i % 2 else weights[::-1]
        chosen = rng.choice(words, rng.integers(2, 9), p=chance / chance.sum())
        rows.append({"text": chr(ord("A") + i) + " " + " ".join(chosen), "label": i % 2})
    return rows


def without_ties(rows):
    """One sentence of each beginning: those that begin alike have the same activations there, but for rounding."""
    return list({row["text"].split()[0]: {"text": row["text"], "label": row["label"]} for row in rows}.values())


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "mini"])
def case(request, tokenizer):
    """A plain model, the same under our hooks, labelled sentences, and the MLP's two modules in each layer."""
    if request.param == "mini":
        lm = HookedLM.load("mini")
        model, labelled = lm.unwrapped(), without_ties(xt.mini.labelled("en", n=200))
    else:
        model, labelled = families.build(request.param), sentences(30)
        lm = HookedLM.load(model, tokenizer=tokenizer)
    first = {"gpt2": "mlp.c_fc", "llama": "mlp.gate_proj", "gemma2": "mlp.gate_proj"}[model.config.model_type]
    return (
        model,
        lm,
        labelled,
        {
            site: [
                raw.block(model, layer).get_submodule(first) if site == "pre_activation" else raw.down(model, layer)
                for layer in range(lm.n_layers)
            ]
            for site in ("pre_activation", "mlp_output")
        },
    )


def published_factors(model, lm, labelled, modules, *, of_inputs=False):
    """`[unit]`: AurA's factor of each number that these modules put out, or take in, and which units were judged.

    In the miniature, only some are, because scikit-learn judges one unit at a time.
    """
    highest = []
    for row in labelled:
        read = {}

        def keep(module, inputs, output, read=read):
            read[module] = (inputs[0] if of_inputs else output)[0].detach().amax(0).double().numpy()

        with raw.hooked([module.register_forward_hook(keep) for module in modules]):
            raw.forward(model, torch.tensor(lm.token_ids([row["text"]])))
        highest.append(np.concatenate([read[module] for module in modules]))
    judged = slice(None, None, 1 if len(highest[0]) < 500 else 23)
    labels = [row["label"] for row in labelled]
    areas = np.array([roc_auc_score(labels, unit) for unit in np.array(highest).T[judged]])
    return np.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1.0), judged


def by_module(step, lm):
    """`[layer, unit]`: what an edit of one site multiplies each unit by."""
    factors = np.ones((lm.n_layers, lm.d_model if step.neurons.site == "mlp_output" else lm.d_mlp))
    for (layer, index), value in zip(step.neurons, step.value, strict=True):
        factors[layer, index] = value
    return factors


def share_equal(one, other):
    """Two texts whose numbers are nearly equal may change places, because batches round otherwise."""
    return np.mean(np.abs(one - other) < 1e-6)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_factors_and_their_effect(case, strength):
    model, lm, labelled, modules = case
    fitted = AurA().fit(lm, labelled, progress=False)
    edit = fitted.at(strength)
    assert all(set(step.value) == {1.0} for step in fitted.at(0.0).steps())
    assert [step.neurons.site for step in edit.steps()] == ["pre_activation", "mlp_output"]
    used = {}
    for step in edit.steps():
        factors, of_site = by_module(step, lm), modules[step.neurons.site]
        published, judged = published_factors(model, lm, labelled, of_site)
        assert 0.2 < np.mean(published < 1) < 0.8
        assert share_equal(factors.ravel()[judged], 1 - strength * (1 - published)) > 0.99
        used |= {module: torch.tensor(part, dtype=torch.float32) for module, part in zip(of_site, factors, strict=True)}

    def damp(module, _, output):
        return output * used[module]

    ids, mask = lm.encode([labelled[1]["text"]])
    unedited = raw.forward(model, ids).logits
    with raw.hooked([module.register_forward_hook(damp) for module in used]):
        expected = raw.forward(model, ids).logits
    with edit.on(lm):
        torch.testing.assert_close(lm.logits(ids, mask), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, unedited, atol=1e-3)


def test_damping_is_once_and_after_the_activation(case):
    model, lm, labelled, modules = case
    fitted = Damping().fit(lm, labelled, progress=False)
    published, judged = published_factors(model, lm, labelled, modules["mlp_output"], of_inputs=True)
    factors = by_module(fitted.at(1.0), lm)
    assert share_equal(factors.ravel()[judged], published) > 0.99
    earlier = Scale.damping(localize.by_auroc(lm, labelled, progress=False))
    np.testing.assert_array_equal(by_module(earlier, lm), factors)
    np.testing.assert_allclose(by_module(fitted.at(0.5), lm), (1 + factors) / 2)


def test_no_experts(lm):
    """Where toxic and other sentences are the same, no unit is better than chance."""
    labelled = [{"text": text, "label": label} for text in ("the cat", "la casa") for label in (0, 1)]
    for method in (AurA(), Damping()):
        with pytest.raises(ValueError, match=f"{method.name}: no unit of .* tells the toxic sentences"):
            method.fit(lm, labelled, progress=False)
