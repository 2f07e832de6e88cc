"""Sites: what a hook sees at each place and what it changes there, in every family and in both engines."""

import families
import plain_sites
import pytest
import raw
import torch

from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.loading import Loaded
from xlingtox.models.sites import SITES

IDS, MASK = torch.tensor([[1, 1, 7, 8, 9], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module", params=families.LAYOUTS)
def pair(request, tokenizer):
    model = families.build(request.param)
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer)


def changed(value):
    """Tell columns and positions apart."""
    return value * torch.linspace(0.5, 1.5, value.shape[-1]) + 0.3


def test_a_hook_sees_and_changes_each_site_as_a_plain_hook_does_in_both_engines(pair):
    name, model, lm = pair
    assert [site for site in SITES if lm.layers_of(site)] == plain_sites.sites_of(name)
    for site in plain_sites.sites_of(name):
        layer = 2 if site == "ln_final" else 1
        seen, expected = {}, {}

        def change(value, seen=seen):
            seen["value"] = value.detach().clone()
            return changed(value)

        def plain(value, expected=expected):
            expected["value"] = value.detach().clone()
            return changed(value)

        with raw.hooked([plain_sites.hook(model, name, site, layer, plain)]):
            plain_logits = raw.forward(model, IDS, MASK).logits
        with lm.hooks(at={(site, layer): change}):
            logits = lm.logits(IDS, MASK)
            in_plain = seen["value"]
            tl_logits, _ = lm._tl_backend.run(IDS[1:], MASK[1:])
        assert in_plain.shape == (2, 5, places.n_columns(lm, (site, layer))), site
        torch.testing.assert_close(in_plain[1], expected["value"][1], atol=1e-5, rtol=1e-5, msg=site)
        torch.testing.assert_close(in_plain[0, 2:], expected["value"][0, 2:], atol=1e-5, rtol=1e-5, msg=site)
        torch.testing.assert_close(logits[1], plain_logits[1], atol=1e-4, rtol=1e-4, msg=site)
        if lm._tl_agrees:
            torch.testing.assert_close(tl_logits[0], plain_logits[1], atol=1e-3, rtol=1e-3, msg=site)
        assert not lm.hooked


def test_a_site_that_a_layer_lacks_is_refused(tokenizer):
    lm = HookedLM.load(families.build("cohere"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="has no ln2 in layer 0: no layer has one"), lm.hooks(at={("ln2", 0): abs}):
        pass
    with pytest.raises(ValueError, match="has no ln_final in layer 1: expected 2"), lm.hooks(at={("ln_final", 1): abs}):
        pass
    with pytest.raises(ValueError, match="has no ln2: no layer has one"):
        places.n_units(lm, "ln2")


def test_sites_without_a_bridge(tokenizer):
    for name in ("phi3", "gpt2"):
        model = families.build(name)
        loaded = Loaded(model, tokenizer, name)
        with_bridge, without = HookedLM.load(model, tokenizer=tokenizer), HookedLM.unbridged(loaded)
        hooks = {(site, 2): changed for site in plain_sites.sites_of(name)}
        with with_bridge.hooks(at=hooks), without.hooks(at=hooks):
            assert torch.equal(with_bridge.logits(IDS, MASK), without.logits(IDS, MASK)), name
