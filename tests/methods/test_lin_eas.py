"""LinEAS: loss, gradients, steps and effect equal those of plain hooks and NumPy."""

import copy
import itertools

import numpy as np
import pytest
import torch
from families import build
from plain_norms import NORMS, mapped, means, norm
from torch.testing import assert_close

from xlingtox.methods import LinEAS
from xlingtox.methods.lin_eas import distance, mean_activations
from xlingtox.methods.transport import places_of
from xlingtox.models.hooked import HookedLM

TOXIC = ["the cat ran", "the dog sat on the mat", "ein hund", "a house and the cat", "la cama grande"]
CLEAN = ["la casa es grande", "el gato duerme", "das ist eine katze", "the house", "кот сидит у двери"]
LABELLED = [{"text": text, "label": label} for label, texts in ((1, TOXIC), (0, CLEAN)) for text in texts]
SMALL = LinEAS(n_steps=4, learning_rate=0.01)


@pytest.fixture(scope="module", params=NORMS)
def family(request, tokenizer):
    """A model in 64 bits, plain and hooked."""
    model = build(request.param).double()
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer, dtype=torch.float64)


def plain_means(model, name, maps, rows):
    """Return what the maps make of each place, averaged over the tokens of each row."""
    taken = {place: [] for place in maps}
    with mapped(model, name, maps):
        # These hooks come after those of the maps, and so see what the maps made.
        handles = [
            norm(model, name, place).register_forward_hook(
                lambda module, args, out, place=place: taken[place].append(out[0].mean(0))
            )
            for place in maps
        ]
        for ids in rows:
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {place: torch.stack(values) for place, values in taken.items()}


def plain_loss(name, model, lm, maps):
    """Compute the loss with NumPy from plain hooks. `maps` are arrays of a gain and a shift."""
    with torch.no_grad():
        moved = plain_means(model, name, maps, lm.token_ids(TOXIC))
    return sum(
        np.mean((np.sort(moved[place].numpy(), 0) - np.sort(means(model, name, place, clean), 0)) ** 2)
        for clean in [lm.token_ids(CLEAN)]
        for place in maps
    )


def random_maps(lm, places):
    rng = np.random.default_rng(0)
    return {place: rng.normal([[1.0], [0.0]], 0.1, (2, lm.d_model)) for place in places}


def test_loss_and_gradient_are_those_of_plain_hooks(family):
    name, model, lm = family
    maps = random_maps(lm, places_of(lm, ("ln1", "ln2")))
    tensors = {place: tuple(torch.tensor(row, requires_grad=True) for row in map_) for place, map_ in maps.items()}
    loss = distance(mean_activations(lm, TOXIC, tensors), mean_activations(lm, CLEAN, dict.fromkeys(maps)))
    assert float(loss.detach()) == pytest.approx(plain_loss(name, model, lm, maps), rel=1e-9)
    loss.backward()
    # Norms of Llama and Cohere compute in 32 bits.
    step, tolerance = (1e-6, 1e-4) if name == "gpt2" else (2e-3, 2e-2)
    for place, kind, column in [(("ln1", 0), 0, 3), (("ln1", 1), 1, 5)]:
        ends = []
        for sign in (1, -1):
            nudged = copy.deepcopy(maps)
            nudged[place][kind, column] += sign * step
            ends.append(plain_loss(name, model, lm, nudged))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(tensors[place][kind].grad[column]) == pytest.approx(slope, rel=tolerance, abs=tolerance / 100)


def test_steps_are_those_of_gradient_descent_through_plain_hooks(family):
    name, model, lm = family
    places = places_of(lm, ("ln1", "ln2"))
    edit = SMALL.fit(lm, LABELLED, progress=False).at(1.0)
    numbers = {place: [torch.ones(lm.d_model).double(), torch.zeros(lm.d_model).double()] for place in places}
    targets = {place: torch.tensor(np.sort(means(model, name, place, lm.token_ids(CLEAN)), 0)) for place in places}
    for _ in range(SMALL.n_steps):
        leaves = {place: [number.clone().requires_grad_() for number in pair] for place, pair in numbers.items()}
        moved = plain_means(model, name, leaves, lm.token_ids(TOXIC))
        loss = sum((moved[place].sort(0).values - targets[place]).square().mean() for place in places)
        slopes = torch.autograd.grad(loss, [leaf for pair in leaves.values() for leaf in pair])
        for (place, kind), slope in zip(((place, kind) for place in places for kind in (0, 1)), slopes, strict=True):
            numbers[place][kind] = numbers[place][kind] - SMALL.learning_rate * slope
    ids, mask = lm.encode(["the cat sat on"])
    with torch.no_grad():
        unedited = model(input_ids=ids).logits
        for strength in (0.5,):
            partial = {place: (1 + strength * (gain - 1), strength * shift) for place, (gain, shift) in numbers.items()}
            with mapped(model, name, partial):
                expected = model(input_ids=ids).logits
            with SMALL.fit(lm, LABELLED, progress=False).at(strength).on(lm):
                assert_close(lm.logits(ids, mask), expected, atol=1e-5, rtol=1e-5)
        assert float((expected - unedited).abs().max()) > 1e-3
    gains = edit.steps()[0]
    expected = torch.cat([numbers["ln1", layer][0] for layer in range(lm.n_layers)])
    np.testing.assert_allclose(gains.values(), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [0.01, 1e4])
def test_the_objective_never_rises_and_falls_in_the_end(lm, rate):
    targets = mean_activations(lm, CLEAN, dict.fromkeys(places_of(lm, ("ln1", "ln2"))))
    method = LinEAS(n_steps=40, learning_rate=rate, unit_penalty=0.01, place_penalty=0.01)
    maps, history = method.trained(lm, TOXIC, targets, progress=False)
    assert len(history) == 41
    assert all(later <= earlier for earlier, later in itertools.pairwise(history))
    assert history[-1] < 0.9 * history[0]
    moved = mean_activations(lm, TOXIC, {place: (maps.gains[place], maps.shifts[place]) for place in maps.gains})
    assert float(distance(moved, targets)) < history[0]


def test_penalties_take_out_units_and_places(lm):
    targets = mean_activations(lm, CLEAN, dict.fromkeys(places_of(lm, ("ln1", "ln2"))))

    def untouched(**penalties):
        maps, _ = LinEAS(n_steps=15, learning_rate=0.05, **penalties).trained(lm, TOXIC, targets, progress=False)
        return torch.stack([(maps.gains[place] == 1) & (maps.shifts[place] == 0) for place in targets])

    assert not untouched().any()
    by_unit = untouched(unit_penalty=2.0)
    assert 0 < by_unit.double().mean() < 1
    by_place = untouched(place_penalty=1.0)
    assert {float(place.double().mean()) for place in by_place} == {0.0, 1.0}
    assert untouched(unit_penalty=1e3).all()


def test_the_proximal_step_is_the_minimum_of_its_convex_problem():
    method, rate, rng = LinEAS(unit_penalty=0.7, place_penalty=0.9), 0.4, np.random.default_rng(0)
    start = rng.normal(size=12)
    found = method._shrunk(torch.tensor(start), rate).numpy()

    def objective(x):
        penalty = 0.7 * np.abs(x).mean() + 0.9 * np.sqrt((x**2).mean())
        return ((x - start) ** 2).sum() / (2 * rate) + penalty

    for size in (1e-1, 1e-2, 1e-3):
        assert all(objective(found) <= objective(found + size * rng.normal(size=12)) for _ in range(200))


def test_the_same_seed_gives_the_same_edit_and_leaves_the_model_as_it_is(lm):
    before, ids = lm.fingerprint(), lm.encode(TOXIC)
    logits = lm.logits(*ids)
    edits = [LinEAS(n_texts=3, n_steps=2).fit(lm, LABELLED, seed=seed, progress=False).at(1.0) for seed in (0, 0, 1)]
    assert edits[0] == edits[1] != edits[2]
    assert lm.fingerprint() == before
    assert all(weight.requires_grad for weight in lm.plain_weights().values())
    assert_close(lm.logits(*ids), logits, atol=0, rtol=0)
    assert not lm.logits(*ids).requires_grad


def test_what_cannot_be_trained_is_refused_in_one_line(lm):
    for wrong in ({"n_steps": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match="expected at least one step and a rate above 0"):
            LinEAS(**wrong)
    with pytest.raises(ValueError, match="expected 0 or more"):
        LinEAS(unit_penalty=-1.0)
    with pytest.raises(ValueError, match="0 sentences of a kind"):
        LinEAS(n_texts=0).fit(lm, LABELLED, progress=False)
