"""Edits at every site in every family: they equal plain PyTorch hooks, alone, together, and in weights."""

import functools
import operator

import families
import plain_sites
import pytest
import raw
import torch
import transformers
from torch.testing import assert_close

from xlingtox.edits import Offset, Project, Scale, Set, Steer, Together
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

IDS, MASK = torch.tensor([[1, 1, 7, 8, 9], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
KEPT = MASK.bool()


class Family:
    def __init__(self, name, tokenizer):
        self.name, self.model = name, families.build(name)
        self.lm = HookedLM.load(self.model, tokenizer=tokenizer)
        self.sites = plain_sites.sites_of(name)
        self.plain = self.lm.logits(IDS, MASK)[KEPT]

    def under(self, edit):
        with edit.on(self.lm):
            return self.lm.logits(IDS, MASK)[KEPT]

    def by_hand(self, changes):
        """Return the plain model's logits under changes of sites, which are set as PyTorch hooks."""
        hooks = [plain_sites.hook(self.model, self.name, site, layer_of(site), change) for site, change in changes]
        with raw.hooked(hooks):
            return raw.forward(self.model, IDS, MASK).logits[KEPT]


@pytest.fixture(scope="module", params=list(families.LAYOUTS))
def family(request, tokenizer):
    return Family(request.param, tokenizer)


def layer_of(site):
    return families.N_LAYERS - 1 if site == "ln_final" else 1


def units(site, *indices):
    return NeuronSet.of([(layer_of(site), index) for index in indices], site=site)


def direction(lm, site):
    n_columns = places.n_columns(lm, (site, layer_of(site)))
    return torch.randn(n_columns, generator=torch.Generator().manual_seed(1))


def changes_at(lm, site):
    """Return edits of a site, each with what it does to the plain activations."""
    width, d = (8 if site == "heads" else 1), direction(lm, site)

    def of_units(x):
        x = x.clone()
        first, second, third, fourth = (slice(i * width, (i + 1) * width) for i in range(4))
        x[..., first] *= 0.5
        x[..., third] *= -1.0
        x[..., fourth] += 0.75
        x[..., second] = -0.25
        return x

    edit = Scale(units(site, 0, 2), [0.5, -1.0]) + Offset(units(site, 3).weighted([1.5]), 0.5)
    return [
        (edit + Set(units(site, 1), -0.25), of_units),
        (Steer(d, layer_of(site), 0.5, site=site), lambda x: x + 0.5 * d),
        (Project(d, layer_of(site), 0.75, site=site), lambda x: x - 0.75 * (x @ d / (d @ d))[..., None] * d),
    ]


def test_edits_are_plain_hooks(family):
    for site in family.sites:
        edits, changes = zip(*changes_at(family.lm, site), strict=True)
        plain = family.by_hand([(site, change) for change in changes])
        assert_close(family.under(functools.reduce(operator.add, edits)), plain, atol=1e-5, rtol=1e-5, msg=site)
        assert not torch.allclose(plain, family.plain, atol=1e-3), site
    assert not family.lm.hooked


def test_edits_of_all_sites_are_plain_hooks_padded_and_alone_in_both_engines(family):
    lm, edits, changes = family.lm, [], []
    for site in family.sites:
        edits += [edit for edit, _ in changes_at(lm, site)]
        changes += [(site, change) for _, change in changes_at(lm, site)]
    plain, edit = family.by_hand(changes), functools.reduce(operator.add, edits)
    assert_close(family.under(edit), plain, atol=1e-5, rtol=1e-5)
    with edit.on(lm):
        assert_close(lm.logits(IDS[:1, 2:], MASK[:1, 2:])[0], plain[:3], atol=1e-5, rtol=1e-5)
        tl_logits, _ = lm._tl_backend.run(IDS[1:], MASK[1:])
    if lm._tl_agrees:
        assert_close(tl_logits[0], plain[3:], atol=1e-3, rtol=1e-3)


def test_edits_that_run_together_are_each_alone(family):
    edits = [changes_at(family.lm, site)[i % 3][0] for i, site in enumerate(family.sites)]
    edits += [edit for edit, _ in changes_at(family.lm, "residual")]
    edits.append(functools.reduce(operator.add, edits))
    numbers = [number for number in range(len(edits)) for _ in IDS]
    rows = len(edits), 1
    with Together(tuple(edits)).on(family.lm):
        logits = family.lm.logits(IDS.repeat(rows), MASK.repeat(rows), edits=numbers)
    for edit, of_edit in zip(edits, logits.split(len(IDS)), strict=True):
        assert_close(of_edit[KEPT], family.under(edit), atol=1e-5, rtol=1e-5, msg=f"{edit}")


def test_neutral_edits_change_nothing_and_opposite_ones_cancel(family):
    lm, neutral, opposite = family.lm, [], []
    for site in family.sites:
        some, d, layer = units(site, 0, 3), direction(lm, site), layer_of(site)
        neutral += [Offset(some, 0.0), Scale(some, 1.0), Steer(d, layer, 0.0, site=site)]
        neutral += [Project(d, layer, 0.0, site=site)]
        opposite += [Offset(some, 0.5), Offset(some, -0.5), Steer(d, layer, 2.0, site=site)]
        opposite += [Steer(d, layer, -2.0, site=site)]
    assert torch.equal(family.under(functools.reduce(operator.add, neutral)), family.plain)
    cancelled = family.under(functools.reduce(operator.add, opposite))
    assert_close(cancelled, family.plain, atol=1e-4, rtol=1e-4)
    assert not lm.hooked


# --- in weights

ANYWHERE = ["neurons", "heads", "pre_activation", "mlp_output", "residual", "ln1", "ln2", "ln_final"]
SHIFTED = {
    **dict.fromkeys(("gpt2", "bloom", "xglm", "opt"), (ANYWHERE, "as it was")),
    "llama tied, biased": (ANYWHERE[:-1], "as it was"),
    "llama": (ANYWHERE[:-1], "attention_bias, mlp_bias"),
    "qwen2": (ANYWHERE[:-1], "LlamaForCausalLM"),
    **{name: (["heads", "ln1"], "attention_bias") for name in ("qwen3", "gemma2", "gemma3")},
    **{name: (["neurons", "heads", "mlp_output", "residual"], "attention_bias") for name in ("cohere", "cohere2")},
    **{name: ([], "as it was") for name in ("mistral", "phi3")},
}
"""The sites at which an offset has a place in the weights, and how the model is then written."""


def in_layers(lm, site, *indices):
    return NeuronSet.of([(layer, index) for layer in lm.layers_of(site) for index in indices], site=site)


def test_baked_equals_hooked_with_edits_of_all_sites_at_once(family):
    lm, (shifted, written_as) = family.lm, SHIFTED[family.name]
    steps = [
        Scale(in_layers(lm, site, 0, 3), [1.25, 0.5] * len(lm.layers_of(site)))
        for site in family.sites
        if site != "residual"
    ]
    steps += [Offset(in_layers(lm, site, 3, 1), 0.75) for site in shifted]
    steps += [Steer(direction(lm, site), layer_of(site), 0.5, site=site) for site in shifted]
    steps += [Set(in_layers(lm, site, 2), 0.25) for site in shifted if site != "residual"]
    edit = functools.reduce(operator.add, steps)
    baked, hooked = edit.bake(lm), family.under(edit)
    assert_close(baked.logits(IDS, MASK)[KEPT], hooked, atol=2e-5, rtol=1e-4)
    assert f"baked ({written_as})" in baked.name
    assert not torch.allclose(hooked, family.plain, atol=1e-2)


def reason(family, site):
    """Return why an offset at a site has no place in the weights, and what is advised."""
    name, only = family.name, r"Run it with edit.on\(lm\), or scale only"
    if site == "ln_final":
        return f"the final norm has no bias, and neither has the unembedding, which reads it. {only}"
    if site.endswith("_post"):
        return f"the norm of '{site}' has no bias, and what it writes is added to the residual stream. {only}"
    if site == "residual" and name.startswith("gemma"):
        return r"a norm follows the MLP of layer 0, so no bias .* Use control_vectors\(lm\)$"
    carrier = {"heads": "the output projection", "pre_activation": "the gate's projection"}.get(site)
    carrier = carrier or {"ln1": "_proj, which reads 'ln1',", "ln2": "_proj, which reads 'ln2',"}.get(site)
    why = "its attention has a sliding window" if name == "mistral" else f"{name}.* has no place for one"
    advice = {"residual": r"Use control_vectors\(lm\)$", "neurons": r"Use control_vectors\(lm\), or scale instead"}
    advice["mlp_output"] = advice["neurons"]
    advised = only if name.startswith("gemma") else advice.get(site, only)
    return f"{carrier or 'the down-projection'} has no bias, and {why}.*{advised}"


def test_an_offset_without_a_place_is_refused_with_the_reason(family):
    for site in set(family.sites) - set(SHIFTED[family.name][0]):
        with pytest.raises(ValueError, match=f"an offset cannot be baked into .*{reason(family, site)}"):
            Offset(in_layers(family.lm, site, 3), 0.75).bake(family.lm)


def test_what_no_weight_can_carry_is_refused(family):
    with pytest.raises(ValueError, match=r"a factor .*the residual stream goes past every weight.*edit.on\(lm\)"):
        Scale(units("residual", 0), 0.5).bake(family.lm)
    with pytest.raises(ValueError, match=r"cannot be baked into weights: it mixes the dimensions of 'residual'"):
        Project(direction(family.lm, "residual"), 1).bake(family.lm)


def test_control_vectors_of_the_residual_stream_and_of_mlp_outputs(family):
    lm, d = family.lm, direction(family.lm, "residual")
    edit = Steer(d, 1, 0.5) + Offset(units("residual", 3), 0.75)
    if not family.name.startswith("gemma"):
        edit += Steer(-d, 1, 0.25, site="mlp_output") + Offset(units("neurons", 3), 0.5)
    vectors = edit.control_vectors(lm)
    assert list(vectors.vectors) == [1]
    assert_close(family.under(vectors), family.under(edit), atol=1e-5, rtol=1e-5)
    for site in set(family.sites) - {"neurons", "mlp_output", "residual"}:
        with pytest.raises(ValueError, match=r"only offsets of neurons, of the MLP's output and of the residual"):
            Offset(units(site, 0), 1.0).control_vectors(lm)


def load(model, tokenizer):
    return HookedLM.load(families.randomised(model), tokenizer=tokenizer)


SIZE = {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
IDENTIFIERS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "hidden_size": 32}


def equal(lm, edit):
    with edit.on(lm):
        hooked = lm.logits(IDS, MASK)[KEPT]
    assert_close(edit.bake(lm).logits(IDS, MASK)[KEPT], hooked, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(hooked, lm.logits(IDS, MASK)[KEPT], atol=1e-3)


def test_a_block_that_ends_in_a_norm_carries_any_edit_of_the_residual_stream(tokenizer):
    """OPT of 350 million parameters is built so."""
    config = transformers.OPTConfig(
        ffn_dim=40, word_embed_proj_dim=16, do_layer_norm_before=False, **SIZE, **IDENTIFIERS
    )
    lm = load(transformers.OPTForCausalLM(config), tokenizer)
    equal(lm, Scale(in_layers(lm, "residual", 0, 1), 0.5) + Offset(in_layers(lm, "residual", 1, 2), 0.75))


@pytest.mark.parametrize("tied", [False, True])
def test_norms_without_weights_leave_factors_to_their_readers(tokenizer, tied):
    config = transformers.OlmoConfig(intermediate_size=40, tie_word_embeddings=tied, **SIZE, **IDENTIFIERS)
    lm = load(transformers.OlmoForCausalLM(config), tokenizer)
    final = Scale(in_layers(lm, "ln_final", 0, 1), 0.5)
    equal(lm, Scale(in_layers(lm, "ln1", 0, 1), 0.5) + Offset(in_layers(lm, "ln1", 1, 2), 0.75))
    if tied:
        with pytest.raises(ValueError, match="the unembedding shares its weights with the embedding"):
            final.bake(lm)
    else:
        equal(lm, final + Scale(in_layers(lm, "ln2", 0, 1), 0.5))


def test_a_multiplier_of_the_mlp_is_undone(tokenizer):
    config = transformers.GraniteConfig(intermediate_size=40, residual_multiplier=0.25, **SIZE, **IDENTIFIERS)
    lm = load(transformers.GraniteForCausalLM(config), tokenizer)
    edit = Steer(direction(lm, "residual"), 1) + Offset(in_layers(lm, "mlp_output", 3), 0.75)
    equal(lm, edit)
    (ids, mask), vectors = (IDS, MASK), edit.control_vectors(lm)
    with edit.on(lm):
        hooked = lm.logits(ids, mask)[KEPT]
    with vectors.on(lm):
        assert_close(lm.logits(ids, mask)[KEPT], hooked, atol=1e-5, rtol=1e-5)
