"""Attention heads: what a hook sees of them, what it changes, and the projection that reads them, in every family."""

import families
import pytest
import raw
import torch

from xlingtox.models.hooked import HookedLM

IDS, MASK = torch.tensor([[1, 1, 7, 8, 9], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module", params=families.LAYOUTS)
def pair(request, tokenizer):
    model = families.build(request.param)
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer)


def seen_by_plain_hooks(model, name, change=None):
    seen = {}

    def before(layer):
        def hook(_, args):
            seen[layer] = args[0].detach().reshape(2, 5, -1)
            return None if change is None else (change(args[0]),)

        return hook

    outs = [families.out(model, name, layer) for layer in range(families.N_LAYERS)]
    with raw.hooked([out.register_forward_pre_hook(before(layer)) for layer, out in enumerate(outs)]):
        logits = raw.forward(model, IDS, MASK).logits
    return seen, logits


def test_a_hook_sees_what_the_output_projection_reads(pair):
    name, model, lm = pair
    seen = {}
    with lm.hooks(heads={layer: lambda value, layer=layer: seen.update({layer: value}) for layer in range(3)}):
        lm.logits(IDS, MASK)
    expected, _ = seen_by_plain_hooks(model, name)
    assert lm.n_heads == 4
    for layer, value in seen.items():
        assert value.shape[-1] == lm.n_heads * lm.head_width(layer)
        torch.testing.assert_close(value[1], expected[layer][1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value[0, 2:], expected[layer][0, 2:], atol=1e-5, rtol=1e-5)
        weight = families.out(model, name, layer).weight
        assert torch.equal(lm.output_projection(layer), weight if name == "gpt2" else weight.T)


def test_a_hook_changes_heads_in_both_engines(pair):
    name, model, lm = pair
    _, expected = seen_by_plain_hooks(model, name, change=lambda value: 0.5 * value)
    with lm.hooks(heads=dict.fromkeys(range(3), lambda value: 0.5 * value)):
        ours = lm.logits(IDS, MASK)
        tl, _ = lm._tl_backend.run(IDS[1:], MASK[1:])
    torch.testing.assert_close(ours[1], expected[1], atol=1e-4, rtol=1e-4)
    # TransformerLens 3.9 gives other logits of Cohere models, with hooks and without.
    if lm._tl_agrees:
        torch.testing.assert_close(tl[0], expected[1], atol=1e-3, rtol=1e-3)


def test_a_model_without_heads_of_one_width_says_so(tokenizer, monkeypatch):
    lm = HookedLM.load(families.build("gpt2"), tokenizer=tokenizer)
    monkeypatch.setattr(lm.tl.cfg, "n_heads", 5)
    complaint = r"layer 0 has no attention heads of one width \(5 are configured\)"
    with pytest.raises(ValueError, match=complaint), lm.hooks(heads={0: lambda value: value}):
        pass
