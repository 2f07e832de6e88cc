"""Edits from mean activations: their numbers and their logits against plain PyTorch, their dials, and bad input."""

import copy
import dataclasses
from typing import NamedTuple

import pytest
import raw
import torch
from conftest import tiny
from families import randomised
from torch.testing import assert_close

from xlingtox.edits import aligned_means, aligned_offset, mean_mix, mean_offset, mean_scale
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe

STEPS = 5
PAIRS = [(1, 5), (0, 3), (0, 40), (1, 0)]
NEURONS = NeuronSet.of(PAIRS)
READ = NeuronSet.of([*reversed(PAIRS), (1, 7)])
"""The neurons that were read: others too, and in another order."""

PROMPTS = {"en": ["the cat sat on", "a dog"], "es": ["la casa es grande y", "el gato", "duerme en la cama"]}
ROWS = [{"language": code, "prompt": text} for code, texts in PROMPTS.items() for text in texts]
TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "a"]
KINDS = {
    "offset": mean_offset,
    "mix": lambda neurons, before, after, **how: mean_mix(neurons, after, **how),
    "scale": mean_scale,
}


class Both(NamedTuple):
    """Two raw models, the first under our hooks, and what both read on the first one's text."""

    model: object
    other: object
    lm: HookedLM
    before: Activations
    after: Activations


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request, tokenizer):
    models = [tiny(request.param), randomised(tiny(request.param), seed=1)]
    lm, tuned = (HookedLM.load(model, tokenizer=tokenizer) for model in models)
    reading = {"max_new_tokens": STEPS, "progress": False, "writer": lm}
    before = collect_activations(lm, ROWS, READ, **(reading | {"writer": None}))
    return Both(*models, lm, before, collect_activations(tuned, ROWS, READ, **reading))


def means_by_hand(both, tokenizer, model, languages):
    """Read one neuron at a time at the positions that produce the first model's greedy tokens."""
    steps = []
    for code in languages:
        for text in PROMPTS[code]:
            ids = tokenizer(text)["input_ids"]
            new, _ = raw.greedy(both.model, ids, STEPS, 0)
            with raw.watching(model, [0, 1]) as seen:
                raw.forward(model, torch.tensor([[*ids, *new[:-1]]]))
            steps += [
                torch.stack([seen[layer][0, place, index] for layer, index in PAIRS])
                for place in range(len(ids) - 1, len(ids) - 1 + len(new))
            ]
    return torch.stack(steps).double().mean(0)


def logits(lm, edit):
    ids, mask = lm.encode(TEXTS)
    with edit.on(lm):
        return lm.logits(ids, mask)[mask]


def raw_logits(both, gains, shifts):
    """Return the raw model's logits with each neuron at `gain * x + shift`."""
    ids, mask = both.lm.encode(TEXTS)
    handles = []
    for layer in (0, 1):

        def before(_, args, layer=layer):
            value = args[0].clone()
            for (pair_layer, index), gain, shift in zip(PAIRS, gains.tolist(), shifts.tolist(), strict=True):
                if pair_layer == layer:
                    value[..., index] = gain * value[..., index] + shift
            return (value,)

        handles.append(raw.down(both.model, layer).register_forward_pre_hook(before))
    with raw.hooked(handles):
        return raw.forward(both.model, ids, mask).logits[mask]


@pytest.mark.parametrize("language", [None, "es"])
@pytest.mark.parametrize("kind", KINDS)
def test_edits_by_means_equal_pytorch_hooks(both, tokenizer, kind, language):
    languages = [language] if language else list(PROMPTS)
    own, other = (means_by_hand(both, tokenizer, model, languages) for model in (both.model, both.other))
    one, none = torch.ones_like(own), torch.zeros_like(own)
    strength = 1.5
    gains, shifts = {
        "offset": (one, strength * (other - own)),
        "mix": ((1 - strength) * one, strength * other),
        "scale": (1 + strength * (other / own - 1), none),
    }[kind]
    edit = KINDS[kind](NEURONS, both.before, both.after, strength=strength, language=language)
    theirs = raw_logits(both, gains, shifts)
    assert_close(logits(both.lm, edit), theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(theirs, raw_logits(both, one, none), atol=1e-2)


@pytest.mark.parametrize("kind", ["offset", "means"])
def test_edits_along_a_probe_equal_pytorch_hooks(both, tokenizer, kind):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    probe = Probe(direction, 0.0)
    own = means_by_hand(both, tokenizer, both.model, PROMPTS)
    signs = torch.stack([raw.values(both.model, layer)[index] @ direction for layer, index in PAIRS]).sign()
    assert len(set(signs.tolist())) == 2
    target = own - 0.5 * signs * own.abs()
    # The authors' four groups: their factor is 1 - alpha where the signs of alignment and mean agree, else 1 + alpha.
    assert_close(target, own * torch.where(signs == own.sign(), 0.5, 1.5))
    arguments = NEURONS, both.lm, probe, both.before
    if kind == "offset":
        edit, gains, shifts = aligned_offset(*arguments, strength=0.5), torch.ones_like(own), target - own
    else:
        edit, gains, shifts = aligned_means(*arguments, alpha=0.5), torch.zeros_like(own), target
    assert_close(logits(both.lm, edit), raw_logits(both, gains, shifts), atol=1e-4, rtol=1e-4)


def test_a_strength_of_0_changes_nothing(both):
    probe = Probe(torch.ones(32), 0.0)
    edits = [build(NEURONS, both.before, both.after, strength=0.0) for build in KINDS.values()]
    edits.append(aligned_offset(NEURONS, both.lm, probe, both.before, strength=0.0))
    ids, mask = both.lm.encode(TEXTS)
    unedited = both.lm.logits(ids, mask)[mask]
    for edit in edits:
        assert torch.equal(logits(both.lm, edit), unedited)


@pytest.mark.parametrize("kind", KINDS)
def test_full_strength_gives_the_other_models_means(both, tokenizer, kind):
    """The first layer's neurons read nothing that these edits change."""
    first = NeuronSet.of([(0, 40), (0, 3)])
    writer = HookedLM.load(copy.deepcopy(both.model), tokenizer=tokenizer)
    with KINDS[kind](first, both.before, both.after).on(both.lm):
        read = collect_activations(both.lm, ROWS, first, max_new_tokens=STEPS, progress=False, writer=writer)
    places = [both.after.neurons.neurons.index(neuron) for neuron in first]
    assert_close(read.mean(), both.after.mean()[places], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both.before.mean()[places], read.mean(), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_by_means_are_baked(both, kind):
    edit = KINDS[kind](NEURONS, both.before, both.after, strength=0.5)
    baked = edit.bake(both.lm)
    ids, mask = both.lm.encode(TEXTS)
    assert_close(baked.logits(ids, mask)[mask], logits(both.lm, edit), atol=1e-4, rtol=1e-4)


def test_bad_input_is_refused_in_one_line(both):
    before, after = both.before, both.after
    probe = Probe(torch.ones(32), 0.0)
    unread = NeuronSet.of([(0, 9)])
    own_text = dataclasses.replace(after, writer=None)
    fewer = dataclasses.replace(after, mask=torch.zeros_like(after.mask))
    still = dataclasses.replace(before, sums=torch.zeros_like(before.sums))
    edited = dataclasses.replace(before, model=dataclasses.replace(before.model, edit="Offset"))
    refused = [
        (lambda: mean_offset(unread, before, after), r"lack neuron \(0, 9\): collect those of all neurons"),
        (lambda: mean_mix(unread, after), r"lack neuron \(0, 9\)"),
        (lambda: mean_offset(NEURONS, before, after, language="de"), "no prompts in 'de': there are en, es"),
        (lambda: mean_mix(NEURONS, after, language="de"), "no prompts in 'de'"),
        (lambda: mean_offset(NEURONS, before, own_text), "read different text.* same writer="),
        (lambda: mean_scale(NEURONS, before, fewer), "read different text"),
        (lambda: mean_scale(NEURONS, still, after), r"neuron \(1, 5\) has the mean 0 before: no factor moves it"),
        (lambda: mean_offset(NEURONS, before, after, strength=float("nan")), "expected a finite number"),
        (lambda: aligned_offset(NEURONS, both.lm, probe, after), "the activations are of .*, not of"),
        (lambda: aligned_means(NEURONS, both.lm, probe, edited, alpha=0.1), "the activations are of .*, not of"),
        (lambda: aligned_offset(NEURONS, both.lm, Probe(torch.zeros(32), 0.0), before), "direction is zero"),
        (lambda: aligned_offset(NEURONS, both.lm, Probe(torch.ones(9), 0.0), before), "9"),
        (lambda: aligned_offset(NeuronSet.of([(7, 0)]), both.lm, probe, before), r"neuron \(7, 0\) is outside"),
        (lambda: mean_offset(NeuronSet.of([(0, 1)], site="heads"), before, after), "heads"),
    ]
    for call, words in refused:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
