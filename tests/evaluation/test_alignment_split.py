"""The split of a change over groups of neurons: against plain PyTorch hooks and numpy, on a gated model."""

import contextlib
import dataclasses
import re

import families
import numpy as np
import pytest
import raw
import torch
from studies import HOSTILE

from xlingtox.evaluation.alignment_split import METHODS, AlignmentSplit
from xlingtox.evaluation.attribute import attribute
from xlingtox.evaluation.projection import SIGNS
from xlingtox.evaluation.splitting import alignment_split
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring import WordlistScorer

PROMPTS = {"en": ["the cat sat", "the dog"], "es": ["la casa es grande y", "el gato", "en la cama"]}
TEXTS = [text for texts in PROMPTS.values() for text in texts]
CODES = ("en", "en", "es", "es", "es")
GROUP = NeuronSet.of([(0, 3), (0, 30), (1, 5), (2, 0)])
LAYERS = range(families.N_LAYERS)


@pytest.fixture(scope="module")
def pair(tokenizer):
    models = [families.build("llama"), families.randomised(families.build("llama"), seed=1)]
    return models, [HookedLM.load(model, tokenizer=tokenizer) for model in models]


@pytest.fixture(scope="module")
def probe():
    return Probe(torch.linspace(-1, 1, families.D_MODEL), 0.5, 1.0, 1.0, 0.5, 1, 1)


@pytest.fixture(scope="module")
def written(pair):
    """Two continuations of each prompt, one of which is blank."""
    texts = generate(pair[1][0], PROMPTS, n_samples=2, max_new_tokens=5, progress=False)
    return dataclasses.replace(texts, texts=(*texts.texts[:3], "", *texts.texts[4:]))


@pytest.fixture(scope="module")
def split(pair, probe, written):
    groups = {"some": GROUP}
    return alignment_split(
        *pair[1], PROMPTS, probe, continuations=written, groups=groups, n_random=2, max_new_tokens=5, progress=False
    )


def rows_by_hand(written, tokenizer):
    """The number of the prompt, the tokens, and the place of the first new token, of each text that is not blank."""
    for number, text in enumerate(written.texts):
        if text:
            prompt = TEXTS[number // 2]
            begin = len(tokenizer(prompt)["input_ids"])
            yield number // 2, torch.tensor([tokenizer(prompt + text)["input_ids"]]), begin


def means_by_hand(model, written, tokenizer):
    """The mean activation of each neuron over the tokens of each prompt's texts, [prompt, layer, neuron]."""
    of_prompt = [[] for _ in TEXTS]
    with raw.watching(model, LAYERS) as seen:
        for prompt, ids, begin in rows_by_hand(written, tokenizer):
            raw.forward(model, ids)
            places = slice(begin - 1, ids.shape[1] - 1)
            of_prompt[prompt].append(np.stack([seen[layer][0, places].double().mean(0).numpy() for layer in LAYERS]))
    return np.stack([np.mean(texts, 0) for texts in of_prompt])


def along(model, probe):
    unit = (probe.direction / probe.direction.norm()).double()
    return np.stack([(raw.values(model, layer).detach().double() @ unit).numpy() for layer in LAYERS])


def over_languages(values):
    return np.mean([values[np.array(CODES) == code].mean(0) for code in PROMPTS], 0)


def test_groups_and_projection_equal_plain_hooks_and_numpy(pair, probe, written, tokenizer, split):
    """Yang et al. 2024: mean activation over tokens, times the value vector along the probe, before less after."""
    base, tuned = pair[0]
    means = [means_by_hand(model, written, tokenizer) for model in (base, tuned)]
    pushes = [means[i] * along(model, probe) for i, model in enumerate((base, tuned))]
    toxic, positive = along(base, probe) > 0, over_languages(means[0]) > 0
    masks = {"TP": toxic & positive, "TN": toxic & ~positive, "AP": ~toxic & positive, "AN": ~toxic & ~positive}
    fall = pushes[0] - pushes[1]
    table = split.to_frame().query("method == 'projection'").set_index(["direction", "group", "language"])
    for name, mask in masks.items():
        assert set(split.groups[name]) == {tuple(map(int, pair)) for pair in np.argwhere(mask)}
        for direction in ("tuned into base", "base into tuned"):
            for code in ("en", "es"):
                rows = np.array(CODES) == code
                share = fall[rows][:, mask].sum() / fall[rows].sum()
                assert table.loc[(direction, name, code)].share == pytest.approx(share, rel=1e-4)
            share = over_languages(fall)[mask].sum() / over_languages(fall).sum()
            assert table.loc[(direction, name, "all")].share == pytest.approx(share, rel=1e-4)
    assert sum(map(len, (split.groups[name] for name in SIGNS))) == pair[1][0].n_neurons
    some = sum(over_languages(fall)[layer, index] for layer, index in GROUP) / over_languages(fall).sum()
    assert table.loc[("tuned into base", "some", "all")].share == pytest.approx(some, rel=1e-4)


def test_patches_equal_pytorch_hooks_in_both_directions(pair, probe, written, tokenizer, split):
    for direction, (before, after) in zip(split.changes, (pair[0], pair[0][::-1]), strict=True):
        for name in ("TN", "some"):
            values = np.zeros((3, len(TEXTS)))
            for prompt, ids, begin in rows_by_hand(written, tokenizer):
                n_texts = sum(bool(text) for text in written.texts[2 * prompt : 2 * prompt + 2])
                for row, model in enumerate((before, after, before)):
                    with contextlib.ExitStack() as stack:
                        if row == 2:
                            with raw.watching(after, LAYERS) as seen:
                                raw.forward(after, ids)
                            for layer, (indices, _) in split.groups[name].by_layer().items():
                                neurons = [(layer, index) for index in indices]
                                held = seen[layer][..., indices]
                                stack.enter_context(raw.editing(model, neurons, lambda x, held=held: held))
                        chances = raw.forward(model, ids).logits[0].double().log_softmax(-1)
                    values[row, prompt] += (
                        sum(float(chances[place - 1, ids[0, place]]) for place in range(begin, ids.shape[1])) / n_texts
                    )
            changes = split.changes[direction]["patch"]
            np.testing.assert_allclose(changes["whole"], values[1] - values[0], atol=1e-4)
            np.testing.assert_allclose(changes[name], values[2] - values[0], atol=1e-4)


def test_attribution_is_that_of_the_groups(pair, written, split):
    base, tuned = pair[1]
    attribution = attribute(
        base, tuned, written.prompts, continuations=written, groups={"TP": split.groups["TP"]}, progress=False
    )
    for estimate in ("linear", "integrated"):
        changes = split.changes["tuned into base"][estimate]
        np.testing.assert_allclose(changes["TP"], attribution.groups["TP"][estimate], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(changes["whole"], attribution.totals["exact"], rtol=1e-4)
        parts = sum(changes[name] for name in SIGNS)
        np.testing.assert_allclose(changes["all neurons"], parts, rtol=1e-4, atol=1e-5)


def test_random_sets_have_the_same_size_and_layers_and_stand_in_the_table(split):
    assert split.methods == METHODS
    table = split.to_frame()
    assert len(table) == 2 * len(METHODS) * 6 * 3
    assert table[["n_neurons", "share"]].notna().all().all()
    row = table.query("group == 'TP' and method == 'patch' and language == 'es' and direction == 'base into tuned'")
    changes = split.changes["base into tuned"]["patch"]
    es = np.array(CODES) == "es"
    shares = [changes[f"TP (random {i})"][es].mean() / changes["whole"][es].mean() for i in range(2)]
    (row,) = row.itertuples()
    assert (row.random, row.random_low, row.random_high) == pytest.approx((np.mean(shares), min(shares), max(shares)))
    assert row.n_neurons == len(split.groups["TP"])
    assert row.excess == pytest.approx(row.share - row.random)
    known = table[table.excess_low.notna()]
    assert len(known)
    assert ((known.excess_low <= known.excess) & (known.excess <= known.excess_high)).all()
    assert table[table.group == "all neurons"].random.isna().all()
    every = table.query("group == 'all neurons' and method == 'projection'")
    assert every.share.tolist() == pytest.approx([1.0] * len(every))


def test_random_sets_are_drawn_from_whole_layers(pair):
    from xlingtox.evaluation.splitting import _random_set

    large = NeuronSet.of([(0, index) for index in range(18)] + [(2, 1)])
    drawn = _random_set(large, pair[1][0], 0)
    assert [layer for layer, _ in drawn] == [0] * 18 + [2]
    assert set(drawn) & set(large), "a share of random neurons is not lower because a group's share is high"
    assert drawn != _random_set(large, pair[1][0], 1)


def test_a_scorer_keeps_toxic_texts_and_leaves_out_prompts_without_any(pair, probe, written):
    scorer = WordlistScorer({code: ["a", "e", "the"] for code in PROMPTS}, name="letters")
    toxic = scorer.score(written.texts, written.row_languages) >= 0.5
    kept = toxic.reshape(-1, 2).any(1)
    options = {"continuations": written, "methods": ["projection", "patch"], "n_random": 0, "progress": False}
    scored = alignment_split(*pair[1], PROMPTS, probe, scorer=scorer, **options)
    blanked = tuple(text if is_toxic else "" for text, is_toxic in zip(written.texts, toxic, strict=True))
    alone = alignment_split(
        *pair[1], PROMPTS, probe, **options | {"continuations": dataclasses.replace(written, texts=blanked)}
    )
    assert 0 < kept.sum() < len(kept)
    assert scored.languages == tuple(code for code, is_kept in zip(CODES, kept, strict=True) if is_kept)
    assert scored == alone


def test_saved_and_loaded_is_equal(split, tmp_path):
    split.save(tmp_path / "split.safetensors")
    again = AlignmentSplit.load(tmp_path / "split.safetensors")
    assert again == split
    assert again.to_frame().equals(split.to_frame())
    assert again != dataclasses.replace(split, languages=("en",) * 5)
    assert repr(split).startswith("AlignmentSplit(5 prompts: TP ")


def test_a_notebook_shows_it(split):
    shown = re.sub("<[^>]*>", "|", split._repr_html_()).replace("\u00a0", " ")
    assert re.search(r"tuned into base\|+some\|+4\|+[−\d]", shown)
    assert re.search(r"all neurons\|+120\|+100 %\|", shown)
    renamed = {HOSTILE if name == "some" else name: neurons for name, neurons in split.groups.items()}
    changes = {
        direction: {
            method: {name.replace("some", HOSTILE): values for name, values in runs.items()}
            for method, runs in by_method.items()
        }
        for direction, by_method in split.changes.items()
    }
    assert "<img" not in dataclasses.replace(split, groups=renamed, changes=changes)._repr_html_()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": {"TP": GROUP}}, "a group is called 'TP', which is the name of another"),
        ({"groups": {"some (random 1)": GROUP}}, "a group is called 'some .random 1.'"),
        ({"groups": {"some": NeuronSet.of([(7, 0)])}}, "outside the model"),
        ({"methods": []}, "expected at least one"),
        ({"n_random": -1}, "n_random is -1"),
        ({"scorer": WordlistScorer({"en": ["cat"]})}, "does not cover es"),
        (
            {"scorer": WordlistScorer({"en": ["zzz"], "es": ["zzz"]}, name="none")},
            "none finds none of 10 contin",
        ),
    ],
)
def test_bad_input(pair, probe, written, options, words):
    with pytest.raises(ValueError, match=words):
        alignment_split(*pair[1], PROMPTS, probe, continuations=written, **options, progress=False)


def test_bad_models_probes_and_continuations(pair, probe, written):
    base, tuned = pair[1]
    with pytest.raises(ValueError, match="given as both models"):
        alignment_split(base, base, PROMPTS, probe, progress=False)
    with pytest.raises(ValueError, match="direction is zero"):
        alignment_split(base, tuned, PROMPTS, Probe(torch.zeros(families.D_MODEL), 0.0), progress=False)
    with pytest.raises(ValueError, match="continuations are of 5 other prompts"):
        alignment_split(base, tuned, PROMPTS["en"], probe, continuations=written, progress=False)
