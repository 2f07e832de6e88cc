"""A `HookedTransformer`, where TransformerLens 3.9 is installed: the same numbers by the same calls."""

from importlib.metadata import version

import families
import pytest
import torch
import transformer_lens
from torch.testing import assert_close

from xlingtox.edits.interventions import Offset, Scale
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import SITES
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

if not version("transformer-lens").startswith("3."):
    pytest.skip("TransformerLens 4 has no HookedTransformer", allow_module_level=True)

TEXTS = ["the cat sat on the mat", "la casa es grande", "кот"]
NEURONS = NeuronSet.of([(0, 3), (2, 39), (1, 7)])


@pytest.fixture(scope="module")
def hf():
    return families.build("gpt2")


def converted(hf, **settings):
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = transformer_lens.HookedTransformerConfig(
        n_layers=families.N_LAYERS,
        d_model=families.D_MODEL,
        n_ctx=families.POSITIONS,
        d_head=families.D_MODEL // 4,
        n_heads=4,
        d_mlp=40,
        d_vocab=families.VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=hf.config.layer_norm_epsilon,
        original_architecture="GPT2LMHeadModel",
        model_name="gpt2",
    )
    model = transformer_lens.HookedTransformer(config)
    weights = convert_gpt2_weights(hf, config)
    if settings:
        model.load_and_process_state_dict(weights, **settings)
    else:
        model.load_state_dict(weights, strict=False)
    return model


@pytest.fixture(scope="module")
def both(hf, tokenizer):
    return HookedLM.load(converted(hf), tokenizer=tokenizer), HookedLM.load(hf, tokenizer=tokenizer)


def test_logits_vectors_and_sizes(both):
    ours, plain = both
    ids, mask = plain.encode(TEXTS)
    assert_close(ours.logits(ids, mask)[mask], plain.logits(ids, mask)[mask], atol=1e-4, rtol=1e-4)
    assert (ours.d_mlp, ours.n_layers, ours.n_positions) == (40, 3, families.POSITIONS)
    for layer in range(3):
        assert torch.equal(ours.value_vectors(layer), plain.value_vectors(layer))
        assert torch.equal(ours.key_vectors(layer), plain.key_vectors(layer))


@pytest.mark.parametrize("how", [{"greedy": True}, {"n_samples": 4, "seed": 1, "temperature": 0.2}])
def test_texts(both, how):
    ours, plain = (generate(lm, TEXTS, max_new_tokens=10, progress=False, **how).texts for lm in both)
    assert ours == plain


def test_activations_and_edits(both):
    ours, plain = (collect_activations(lm, TEXTS, NEURONS, max_new_tokens=6, progress=False) for lm in both)
    assert_close(ours.values, plain.values, atol=1e-4, rtol=1e-4)
    ids, mask = both[0].encode(TEXTS)
    logits = []
    for lm in both:
        with Offset(NEURONS, 2.0).on(lm):
            logits.append(lm.logits(ids, mask)[mask])
    assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"fold_ln": True, "center_writing_weights": False, "center_unembed": False},
        {"fold_ln": False, "center_writing_weights": True, "center_unembed": False},
        {"fold_ln": True, "center_writing_weights": True, "center_unembed": True},
    ],
)
def test_processed_weights_are_refused(hf, tokenizer, settings):
    with pytest.raises(ValueError, match=r"processed|centred"):
        HookedLM.load(converted(hf, **settings), tokenizer=tokenizer)


def test_every_site(both):
    plain = both[1]
    ids, mask = plain.encode(TEXTS)
    for site in SITES:
        if not plain.layers_of(site):
            assert site in ("ln1_post", "ln2_post")
            continue
        logits = []
        for lm in both:
            assert lm.layers_of(site) == plain.layers_of(site)
            edit = Scale(NeuronSet.all(lm, site=site), 0.75) + Offset(NeuronSet.all(lm, site=site), 0.1)
            with edit.on(lm):
                logits.append(lm.logits(ids, mask)[mask])
        assert_close(*logits, atol=1e-3, rtol=1e-3, msg=site)
