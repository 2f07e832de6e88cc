"""Both sides of dual multilinguality: against numpy by hand, and where the truth is known because it was planted."""

import dataclasses
import re

import families
import numpy as np
import pytest
import raw
import torch
from families import build
from planted import D_MLP, world

import xlingtox as xt
from xlingtox.evaluation.beside_chance import draw_places
from xlingtox.evaluation.dual_result import DualMultilinguality
from xlingtox.evaluation.firing import equally_active, halves
from xlingtox.evaluation.value_side import own_tokens
from xlingtox.neurons.toxic_tokens import toxic_tokens

CODES = ("en", "es", "fr")
N_PLANTED, N_RANDOM = 8, 99


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def planted(request):
    """A random model in which eight neurons write words of English and Spanish, and fire before their toxic words.

    French is a language of other words, for which nothing was planted.
    """
    there = world(0, "random", family=request.param)
    lm, words = there.lm, dict(there.toxic_words)
    french = [f"esword{i}" for i in range(10)]
    embedding = lm.unembedding().detach()
    token = {word: lm.tokenizer.convert_tokens_to_ids(word) for listed in (*words.values(), french) for word in listed}
    rows = {code: embedding[[token[word] for word in words[code]]].mean(0) for code in ("en", "es")}
    model = lm._hf_backend.model
    with torch.no_grad():
        for index in range(N_PLANTED):
            raw.values(model, 1)[index] = 3 * (rows["en"] + rows["es"])
            raw.keys(model, 1)[index] = (1 + index / 10) * (rows["en"] + rows["es"])
            if request.param == "llama":
                families.ups(model, "llama", 1)[index] = raw.keys(model, 1)[index]
    return lm, words | {"fr": french}


def prompts(words, kind, n=24):
    """Prompts of neutral words; toxic ones have two toxic words at their end. French has no toxic text."""
    rng = np.random.default_rng(1 if kind == "toxic" else 2)
    rows = []
    for index in range(n):
        for code in CODES:
            own = "es" if code == "fr" else code
            text = [f"{own}word{i}" for i in rng.integers(20, 150, 4)]
            if kind == "toxic" and code != "fr":
                text[2:] = rng.choice(words[code], 2)
            rows.append({"language": code, "prompt": " ".join(text), "index": index})
    return rows


@pytest.fixture(scope="module")
def measured(planted):
    lm, words = planted
    sets = {"planted": xt.NeuronSet.of([(1, i) for i in range(N_PLANTED)])}
    sets["others"] = xt.NeuronSet.of([(1, i) for i in range(60, 60 + N_PLANTED)])
    dual = dual_of(planted, sets)
    return lm, words, sets, dual


def dual_of(planted, sets, **options):
    lm, words = planted
    toxic, neutral = prompts(words, "toxic"), prompts(words, "neutral")
    settings = {"n_random": N_RANDOM, "max_new_tokens": 1, "progress": False} | options
    return xt.dual_multilinguality(lm, sets, toxic, neutral, toxic_words=words, **settings)


def test_what_was_planted_is_found_in_exactly_these_languages(measured):
    *_, dual = measured
    assert dual.standing("planted", side="value") == ("en", "es")
    assert dual.standing("planted", side="key") == ("en", "es")
    assert len(dual.firing["planted"].chosen) == N_PLANTED
    assert dual.firing["planted"].p == 1 / (1 + N_RANDOM)
    assert dual.standing("others", side="value") == ()
    once = dual.at_once_frame().set_index(["neurons", "side", "control"]).sort_index()
    assert once.loc[("planted", "value", "random"), ["tested", "above"]].tolist() == [3, 2]
    assert once.loc[("planted", "key", "random"), "above"] == 2
    assert [verdict.verdict for verdict in dual.verdicts][:3] == ["found", "found", "not found"]
    assert "Corrected, this holds in 2 of 3 languages: English, Spanish." in dual.verdicts[0].reason


def test_the_value_side_is_that_of_numpy(measured):
    lm, words, sets, dual = measured
    vectors = lm.write_vectors(1).detach().double().numpy()
    logits = vectors @ lm.unembedding().detach().double().numpy().T
    top = np.argsort(-logits, axis=1)[:, :10]
    frame = dual.to_frame().set_index(["neurons", "side", "language"]).sort_index()
    places = draw_places(sets["planted"], lm, n=N_RANDOM, seed=0) - D_MLP
    p_values = []
    for code in CODES:
        ids = lm.tokenizer.convert_tokens_to_ids(words[code])
        shares = np.isin(top, ids).mean(1)
        row = frame.loc["planted", "value", code]
        assert row["value"] == pytest.approx(shares[:N_PLANTED].mean())
        random = shares[places].mean(1)
        assert row["chance"] == pytest.approx(random.mean())
        assert row["p"] == pytest.approx((1 + (random >= shares[:N_PLANTED].mean() - 1e-12).sum()) / (1 + N_RANDOM))
        p_values.append(row["p"])
    corrected = frame.loc[("planted", "value"), "corrected"][list(CODES)]
    np.testing.assert_allclose(corrected, xt.evaluation.holm(p_values))


def test_the_key_side_is_that_of_plain_hooks(measured):
    lm, words, _, dual = measured
    read = {}
    model = lm._hf_backend.model
    for kind in ("toxic", "neutral"):
        rows = prompts(words, kind)
        _, testing = halves(rows, lm, source_language="en", kind=kind, seed=0)
        for code in CODES:
            texts = [prompt.text for prompt in testing.prompts if prompt.language == code]
            seen = []
            handle = raw.down(model, 1).register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
            with torch.no_grad():
                model(**lm.tokenizer(texts, return_tensors="pt"))
            handle.remove()
            read[kind, code] = seen[0][:, -1, :N_PLANTED].double().mean(1).numpy()
            # No translation of a prompt that chose is among those that test.
            assert len(texts) == 12
    frame = dual.to_frame().set_index(["neurons", "side", "language"]).sort_index()
    for code in CODES:
        gap = read["toxic", code].mean() - read["neutral", code].mean()
        row = frame.loc["planted", "key", code]
        assert row["value"] == pytest.approx(gap, abs=1e-5)
        assert row["low"] < row["value"] - row["chance"] < row["high"]
    values = frame.loc[("planted", "key"), "value"]
    assert values["all"] == pytest.approx(values[list(CODES)].mean())


def test_a_null_is_found_in_no_language():
    """In 20 random sets of a random model, Holm's correction leaves about one finding or none."""
    null = world(3, "random")
    rng = np.random.default_rng(0)
    sets = {
        f"set {i}": xt.NeuronSet.of([(1, int(index)) for index in rng.choice(D_MLP, 8, replace=False)])
        for i in range(20)
    }
    words = null.toxic_words | {"fr": [f"esword{i}" for i in range(10)]}
    toxic, neutral = prompts(words, "neutral"), prompts({"en": [], "es": []}, "neutral", n=25)[3:]
    dual = xt.dual_multilinguality(
        null.lm, sets, toxic, neutral, toxic_words=words, n_random=99, max_new_tokens=1, progress=False
    )
    for side in ("value", "key"):
        assert sum(bool(dual.standing(name, side=side)) for name in sets) <= 3
    once = dual.at_once_frame()
    assert once[(once["side"] == "value") & (once["control"] == "random")]["p"].mean() > 0.3


def test_both_models_read_what_the_first_wrote(planted):
    lm, _ = planted
    chosen = xt.NeuronSet.of([(1, i) for i in range(N_PLANTED)])
    silenced = xt.Scale(chosen, 0.0).bake(lm)
    dual = dual_of(planted, chosen, after=silenced, max_new_tokens=3)
    frame = dual.to_frame().set_index(["model", "side", "language"]).sort_index()
    # Scaled value vectors promote nothing any more; the first layers read the same text as before.
    assert frame.loc[("before", "value", "en"), "value"] > 0.2
    assert frame.loc[("after", "value", "en"), "value"] < frame.loc[("before", "value", "en"), "value"]
    for column in ("value", "chance", "low", "high", "p"):
        keys = [frame.loc[(model, "key"), column] for model in ("before", "after")]
        np.testing.assert_allclose(*keys, rtol=1e-4, atol=1e-5)
    assert [verdict.claim.split()[-2] for verdict in dual.verdicts] == ["before", "before", "after", "after"]


def test_shared_tokens_and_languages_without_tokens(planted):
    lm, words = planted
    shared = {"en": words["en"], "es": words["en"][:4], "fr": ["nothing"]}
    flags = toxic_tokens(lm, shared)
    assert set(own_tokens(flags)) == {"en"}
    dual = xt.dual_multilinguality(
        lm,
        xt.NeuronSet.of([(1, 0), (1, 1)]),
        *(prompts(words, kind, n=8) for kind in ("toxic", "neutral")),
        toxic_words=shared,
        n_random=59,
        max_new_tokens=1,
        progress=False,
    )
    assert (dual.listed, dual.shared, dual.without_words) == ({"en": 10, "es": 4}, {"en": 4, "es": 4}, ("fr",))
    once = dual.at_once_frame().set_index(["side", "control"]).sort_index()
    assert once.loc["value", "tested"].to_dict() == {"random": 2, "own tokens": 1}
    assert "No token stands for a listed word in French." in dual.verdicts[0].reason


def test_where_no_neuron_fires_nothing_is_measured(planted):
    lm, words = planted
    same = prompts(words, "neutral", n=8)
    dual = xt.dual_multilinguality(
        lm, xt.NeuronSet.of([(0, 3)]), same, same, toxic_words={"en": ["nothing"]}, n_random=59, progress=False
    )
    assert len(dual.firing["sources"].chosen) == 0
    assert set(dual.to_frame()["side"]) == {"key"}
    assert dual.to_frame()["value"].isna().all()
    assert [verdict.verdict for verdict in dual.verdicts] == ["not found", "not found"]
    assert repr(dual) == "DualMultilinguality(sources: value side in 0 of 0, key side in 0 of 3 languages)"


def test_saved_and_loaded_is_equal(measured, tmp_path):
    *_, dual = measured
    dual.save(tmp_path / "dual.json")
    assert DualMultilinguality.load(tmp_path / "dual.json") == dual
    assert dual != dataclasses.replace(dual, k=9)
    assert "Dual multilinguality of" in dual._repr_html_()
    again = dual_of(measured[:2], measured[2])
    assert again == dual
    figure = xt.plot(dual)
    assert figure == xt.figures.dual_multilinguality(dual)
    symbols = {drawn.name: list(drawn.marker.symbol) for drawn in figure.data if drawn.name != "random sets"}
    assert symbols["planted"] == ["circle", "circle", "circle-open"]
    with pytest.raises(ValueError, match="no model 'after': there is before"):
        xt.plot(dual, model="after")
    with pytest.raises(ValueError, match="no 'some' in the model 'before': there are planted, others"):
        dual.standing("some", side="key")


def test_equally_active_sets_are_the_nearest():
    means = {0: np.arange(40.0), 1: np.zeros(40)}
    chosen = xt.NeuronSet.of([(0, 10), (0, 11), (1, 3)])
    drawn = equally_active(chosen, chosen, means, d_mlp=40, n=200, seed=0)
    assert drawn.shape == (200, 3)
    assert set(drawn[:, :2].ravel()) <= {5, 6, 7, 8, 9, 12, 13, 14, 15, 16}
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    # Neurons that are equally active are equally likely.
    assert len(set(drawn[:, 2].tolist())) > 35
    assert 43 not in drawn[:, 2]


@pytest.mark.parametrize("name", ["gemma2", "bloom", "qwen3"])
def test_other_families(name, tokenizer):
    lm = xt.HookedLM.load(build(name), tokenizer=tokenizer)
    texts = {code: [f"the cat {i} {code}" for i in range(8)] for code in ("en", "es")}
    other = {code: [f"a dog {i} {code}" for i in range(8)] for code in ("en", "es")}
    neurons = xt.NeuronSet.of([(layer, index) for layer in (0, 2) for index in range(6)])
    dual = xt.dual_multilinguality(
        lm,
        neurons,
        texts,
        other,
        toxic_words={"en": ["the", "cat"], "es": ["dog"]},
        n_random=39,
        max_new_tokens=2,
        progress=False,
    )
    assert np.isfinite(dual.to_frame()[dual.to_frame()["side"] == "value"]["value"]).all()
    assert dual.firing["sources"].of == 12


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"n_random": 10}, "n_random is 10: expected at least 59, fewer cannot decide at 0.05 in 3 languages"),
        ({"k": 0}, "k is 0: expected 1 to"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected at least 1"),
        ({"toxic_words": {"en": []}}, "toxic_words has no words in en: expected some of each"),
        ({"source_language": "de"}, "0 toxic prompts in 'de': expected at least 4"),
        ({"toxic_prompts": ["en"] * 8}, "toxic prompts are in en, and neutral ones in en, es, fr: expected both"),
        ({"sets": xt.NeuronSet.of([(9, 0)])}, "neuron (9, 0) is outside the model"),
        ({"sets": xt.NeuronSet.of([(0, 0)], site="heads")}, "'sources' is a set of heads: expected MLP neurons"),
    ],
)
def test_bad_input_is_refused_in_one_line(planted, change, line):
    lm, words = planted
    given = {"sets": xt.NeuronSet.of([(0, 0)]), "toxic_words": words, "n_random": 59, "progress": False}
    given |= {f"{kind}_prompts": prompts(words, kind, n=8) for kind in ("toxic", "neutral")} | change
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        xt.dual_multilinguality(lm, **given)
    assert "\n" not in str(caught.value)


def test_the_same_model_twice_and_too_few_translations_are_refused(planted):
    lm, words = planted
    with pytest.raises(ValueError, match="is given as both models"):
        dual_of(planted, xt.NeuronSet.of([(0, 0)]), after=lm)
    rows = [row for row in prompts(words, "toxic", n=8) if row["language"] == "en" or row["index"] < 1]
    neutral = prompts(words, "neutral", n=8)
    with pytest.raises(ValueError, match="toxic prompts in 'es' are left to test neurons"):
        xt.dual_multilinguality(
            lm, xt.NeuronSet.of([(0, 0)]), rows, neutral, toxic_words=words, n_random=59, progress=False
        )
