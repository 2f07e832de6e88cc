"""The methods that edit sources, and their control: fits equal numpy's, and effects those of plain hooks."""

import families
import numpy as np
import pytest
import raw
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import xlingtox as xt
from xlingtox.methods import Ablation, Examples, RandomNeurons, SourcesOffset
from xlingtox.models.hooked import HookedLM

WORDS = "the cat sat on mat and dog ran away from house la casa grande el gato hund katze".split()


def sentences(n, seed=0):
    """Toxic sentences (label 1) favour other words than the rest."""
    rng = np.random.default_rng(seed)
    weights = np.linspace(1, 3, len(WORDS))
    rows = []
    for i in range(n):
        chance = weights if i % 2 else weights[::-1]
        rows.append({"text": " ".join(rng.choice(WORDS, rng.integers(2, 9), p=chance / chance.sum())), "label": i % 2})
    return rows


def alone(model, lm, text, layers):
    """The states and the neurons of one text, read by itself."""
    ids = torch.tensor(lm.token_ids([text]))
    with raw.watching(model, layers) as seen:
        states = raw.states(model, ids)
    return states, {layer: seen[layer][0].double().numpy() for layer in layers}


def sources_by_hand(model, lm, labelled, k, seed=0):
    """`{(layer, index): standard deviation}` of the sources, in the order of their cosines."""
    layers = range(lm.n_layers)
    # The toxic sentences stand first, as in `Examples.labelled`.
    rows = sorted(labelled, key=lambda row: -row["label"])
    read = [alone(model, lm, row["text"], layers) for row in rows]
    states = np.stack([states[-1][0].mean(0).numpy() for states, _ in read])
    labels = np.array([row["label"] for row in rows])
    train, _ = train_test_split(range(len(rows)), test_size=0.1, random_state=seed, stratify=labels)
    scale = states[train].std(0) + 1e-6
    standard = (states[train] - states[train].mean(0)) / scale
    direction = LogisticRegression(C=0.01, max_iter=2000).fit(standard, labels[train]).coef_[0] / scale
    vectors = np.concatenate([raw.values(model, layer).double().numpy() for layer in layers])
    cosines = vectors @ direction / np.linalg.norm(vectors, axis=1) / np.linalg.norm(direction)
    candidates = [divmod(int(i), lm.d_mlp) for i in np.argsort(-cosines, kind="stable")[:k]]
    toxic = [neurons for row, (_, neurons) in zip(rows, read, strict=True) if row["label"]]
    values = {
        (layer, index): np.concatenate([neurons[layer][:, index] for neurons in toxic]) for layer, index in candidates
    }
    return {neuron: value.std() for neuron, value in values.items() if value.mean() > 0}


@pytest.fixture(scope="module", params=["gpt2", "llama", "mini"])
def case(request, tokenizer):
    """A plain model, the same under our hooks, labelled sentences, and the number of candidates."""
    if request.param == "mini":
        lm = HookedLM.load("mini")
        return lm.unwrapped(), lm, list(xt.mini.labelled("en", n=60)), 100
    model = families.build(request.param)
    return model, HookedLM.load(model, tokenizer=tokenizer), sentences(60), 20


def logits_under(edit, lm, text):
    ids, mask = lm.encode([text])
    with edit.on(lm):
        return lm.logits(ids, mask)


def test_the_sources_and_their_effect(case):
    model, lm, labelled, k = case
    by_hand = sources_by_hand(model, lm, labelled, k)
    offset = SourcesOffset(k=k).fit(lm, labelled, progress=False)
    ablation = Ablation(k=k).fit(lm, labelled, progress=False)
    assert 0 < len(by_hand) < k
    assert offset.at(1.0).neurons.neurons == ablation.at(1.0).neurons.neurons == tuple(by_hand)
    np.testing.assert_allclose(offset.at(2.0).amounts(), [-2 * std for std in by_hand.values()], rtol=1e-4)
    text = labelled[3]["text"]
    ids = torch.tensor(lm.token_ids([text]))
    unedited = raw.forward(model, ids).logits
    for strength in (0.0, 0.5):
        with edited(model, by_hand, lambda value, stds, strength=strength: value - strength * stds):
            expected = raw.forward(model, ids).logits
        torch.testing.assert_close(logits_under(offset.at(strength), lm, text), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(expected, unedited) == (strength == 0)
    with edited(model, by_hand, lambda value, _: 0.25 * value):
        expected = raw.forward(model, ids).logits
    torch.testing.assert_close(logits_under(ablation.at(0.75), lm, text), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, unedited, atol=1e-3)


def edited(model, stds, change):
    """Plain hooks that change each neuron by means of its own number."""

    def edit(layer):
        columns = [index for own, index in stds if own == layer]
        numbers = torch.tensor([number for (own, _), number in stds.items() if own == layer], dtype=torch.float32)

        def before(_, args):
            value = args[0].clone()
            value[..., columns] = change(value[..., columns], numbers)
            return (value,)

        return before

    layers = {layer for layer, _ in stds}
    return raw.hooked([raw.down(model, layer).register_forward_pre_hook(edit(layer)) for layer in layers])


def test_random_neurons_push_as_far(case):
    model, lm, labelled, k = case
    sources = SourcesOffset(k=k).fit(lm, labelled, seed=3, progress=False).at(1.0)
    control = RandomNeurons(k=k)
    assert control.control
    fitted = control.fit(lm, labelled, seed=3, progress=False)
    assert fitted.control
    drawn = fitted.at(1.0)
    assert not set(drawn.neurons) & set(sources.neurons)
    assert control.fit(lm, labelled, seed=4, progress=False).at(1.0) != drawn
    for edit in (sources, drawn):
        assert edit.amounts() == [-weight for weight in edit.neurons.weights]
    for layer, (indices, columns) in sources.neurons.by_layer().items():
        drawn_indices, drawn_columns = drawn.neurons.by_layer()[layer]
        assert len(drawn_indices) == len(indices)
        vectors = raw.values(model, layer).double().numpy()
        pushes = [
            np.linalg.norm(np.array([edit.amounts()[column] for column in places]) @ vectors[rows])
            for edit, rows, places in ((sources, indices, columns), (drawn, drawn_indices, drawn_columns))
        ]
        assert pushes[0] == pytest.approx(pushes[1], rel=1e-5)


def test_pairs_are_sentences_too(lm):
    rows = sentences(40)
    pairs = [
        {"prompt": "the ", "chosen": clean["text"], "rejected": toxic["text"]}
        for clean, toxic in zip(rows[::2], rows[1::2], strict=True)
    ]
    labelled = [{"text": "the " + row["text"], "label": row["label"]} for row in rows]
    method = SourcesOffset(k=10)
    assert method.fit(lm, pairs, progress=False).at(1.0) == method.fit(lm, labelled, progress=False).at(1.0)
    assert Examples.of(pairs).toxic == tuple(row["text"] for row in labelled if row["label"])


def test_a_fit_that_cannot_be(lm):
    with pytest.raises(ValueError, match="offset of sources is not fitted"):
        SourcesOffset().at(1.0)
    with pytest.raises(ValueError, match=r"k is 97: .* has 96 neurons"):
        SourcesOffset(k=97).fit(lm, sentences(40), progress=False)
    with pytest.raises(ValueError, match="both classes are needed"):
        Ablation(k=5).fit(lm, sentences(40)[::2], progress=False)
    fitted = Ablation(k=10).fit(lm, sentences(40), progress=False)
    with fitted.at(1.0).on(lm):
        lm.logits(*lm.encode(["the cat"]))
        with pytest.raises(ValueError, match="stands under"):
            RandomNeurons(k=5).fit(lm, sentences(40), progress=False)
    with pytest.raises(ValueError, match=r"at strength -1\.0: expected a number from 0"):
        fitted.at(-1.0)
    # Fitting again forgets the first fit.
    assert fitted.fit(lm, sentences(40), progress=False).at(1.0) == fitted.at(1.0)


def test_silent_candidates_are_no_sources(lm, monkeypatch):
    from xlingtox.methods import sources
    from xlingtox.methods.reading import TokenMoments

    def silent(lm, texts, neurons, **_):
        return TokenMoments(neurons, -torch.ones(len(neurons)), torch.ones(len(neurons)))

    monkeypatch.setattr(sources, "read_moments", silent)
    with pytest.raises(ValueError, match=r"none of the 5 candidates has a positive mean activation on the 20 toxic"):
        SourcesOffset(k=5).fit(lm, sentences(40), progress=False)
