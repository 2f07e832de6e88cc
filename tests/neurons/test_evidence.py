import dataclasses

import numpy as np
import pytest
import torch
from planted import D_MLP, N_LAYERS, world
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

import xlingtox as xt
from xlingtox.neurons.areas import Auc, auc
from xlingtox.neurons.chance import shuffled_dimensions, shuffled_label_directions, top_neurons
from xlingtox.neurons.evidence import Evidence, evidence
from xlingtox.neurons.judging import Chance, Ranking, Separation, Words, judged
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.toxic_tokens import promoted_counts, toxic_tokens, vectors_at


@pytest.fixture(scope="module")
def planted():
    return world(0, "planted")


@pytest.fixture(scope="module")
def found(planted):
    return evidence(planted.lm, planted.labelled, toxic_words=planted.toxic_words, k=20, progress=False)


def test_neurons_that_write_toxic_words_are_found(found):
    assert [verdict.verdict for verdict in found.verdicts] == ["found"] * 5
    assert found.verdict.claim == "Toxicity can be localised in these 20 neurons."
    assert found.candidates.evidence == found.verdicts
    assert repr(found).startswith("Evidence(found: Toxicity can be localised in these 20 neurons. ")
    assert list(found.separations) == ["en", "es"]
    assert list(found.words) == ["all", "en", "es"]


@pytest.mark.parametrize(("seed", "family"), [(0, "gpt2"), (1, "llama")])
def test_the_same_weights_shuffled_are_not(seed, family):
    shuffled = world(seed, "shuffled", family=family)
    result = evidence(shuffled.lm, shuffled.labelled, toxic_words=shuffled.toxic_words, k=20, progress=False)
    # The probe works all the same, and its top neurons promote more toxic words than random ones, which any would.
    assert result.verdicts[0].verdict == "found"
    assert result.words["all"].count > result.words["all"].random[2]
    assert result.verdict.verdict == "not found"
    assert "evidence: not found" in repr(result.candidates)
    assert "evidence: not found" in repr(result.candidates.where([True] * 5 + [False] * 15))
    assert "not found" in result._repr_html_()
    assert "not found" in result.candidates._repr_html_()


def test_labels_that_mean_nothing():
    random = world(2, "planted", labels="random")
    result = evidence(random.lm, random.labelled, k=20, progress=False)
    assert result.verdicts[0].verdict == result.verdict.verdict == "not found"
    assert "no better than chance" in result.verdict.reason
    assert len(result.verdicts) == 4
    assert result.words == {}


def test_saved_and_loaded_is_equal(found, tmp_path):
    found.save(tmp_path / "evidence")
    assert Evidence.load(tmp_path / "evidence") == found
    assert Evidence.load(tmp_path / "evidence").candidates.evidence == found.verdicts
    assert found != dataclasses.replace(found, n_shuffles=200)
    (tmp_path / "other").write_text("nothing")
    with pytest.raises(ValueError, match="other"):
        Evidence.load(tmp_path / "other")


def test_frame_has_every_value_beside_its_controls(found):
    frame = found.to_frame()
    assert frame["measure"].value_counts().to_dict() == {"auc": 2, "mean cosine": 2, "toxic tokens": 9}
    assert frame["control"].value_counts().to_dict() == {
        "shuffled labels": 6,
        "shuffled weights": 4,
        "random neurons": 3,
    }
    row = frame[frame["measure"] == "mean cosine"].iloc[0]
    assert row["value"] == pytest.approx(np.mean(found.candidates.scores), abs=1e-6)


def test_the_probe_is_the_one_that_fit_gives(planted, found):
    english = [row for row in planted.labelled if row["language"] == "en"]
    spanish = [row for row in planted.labelled if row["language"] == "es"]
    probe = xt.Probe.fit(planted.lm, english, progress=False)
    assert probe == found.probe
    assert found.candidates.neurons == xt.localize.by_cosine(planted.lm, probe, k=20).neurons
    assert found.separations["en"].auc.value == pytest.approx(probe.auc, abs=1e-6)
    assert found.separations["es"].auc == probe.auc_on(planted.lm, spanish, progress=False)
    tables = {"es": [{"text": row["text"], "label": row["label"]} for row in spanish]}
    apart = evidence(planted.lm, english, labelled_elsewhere=tables, k=20, progress=False)
    assert apart.separations == found.separations


def test_shuffled_label_probes_are_scikit_learns():
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(120, 12)) * rng.uniform(0.1, 9, 12), (np.arange(120) < 30).astype(int)
    directions = shuffled_label_directions(states, labels, penalty=3.0, n=4, seed=5)
    orders = np.random.default_rng([5, 1])
    for direction in directions.T:
        scale = states.std(0) + 1e-6
        regression = LogisticRegression(C=1 / 3, tol=1e-8, max_iter=5000)
        regression.fit((states - states.mean(0)) / scale, orders.permutation(labels))
        assert_close(direction, torch.tensor(regression.coef_[0] / scale, dtype=torch.float32), atol=1e-4, rtol=1e-3)


def test_shuffled_dimensions_are_those_of_a_model_with_shuffled_vectors(planted):
    lm, direction = planted.lm, torch.linspace(-1, 2, planted.lm.d_model)
    (order,) = shuffled_dimensions(lm.d_model, n=1, seed=0)
    turned = torch.empty(lm.d_model).scatter_(0, order, direction)
    cosines, places = top_neurons(lm, torch.stack([turned, direction], 1), k=7)
    vectors = torch.cat([lm.write_vectors(layer) for layer in range(N_LAYERS)])
    for column, copies in enumerate((vectors[:, order], vectors)):
        expected = torch.cosine_similarity(copies, direction, -1).topk(7)
        assert_close(cosines[:, column], expected.values, atol=1e-5, rtol=1e-5)
        assert places[:, column].tolist() == expected.indices.tolist()
    assert_close(vectors_at(lm, places[:, 1]), vectors[places[:, 1]])
    assert places.max() < N_LAYERS * D_MLP


def test_counts_of_promoted_words_are_those_of_promoted_tokens(planted, found):
    neurons, words = found.candidates, planted.toxic_words
    tokens = neurons.promoted_tokens(planted.lm, k=10)
    for code in ("en", "es"):
        expected = tokens["token"].isin(words[code]).groupby([tokens["layer"], tokens["index"]]).sum()
        assert found.words[code].count == expected.sum()
        assert found.words[code].promoters == (expected > 0).sum()
        assert found.words[code].listed == len(words[code])
    flags = toxic_tokens(planted.lm, words)
    counts = promoted_counts(planted.lm, neurons.vectors(planted.lm), torch.stack([flags["en"], flags["es"]]))
    assert counts.sum() == found.words["all"].count == found.words["en"].count + found.words["es"].count


def test_which_tokens_count(lm):
    """Byte pairs of CORPUS: a whole word with or without its space, or the first three letters and more of one."""
    text = {token: lm.tokenizer.decode([token]) for token in range(300)}
    known = next(word.strip() for word in text.values() if len(word.strip()) >= 3 and word.strip().isalpha())
    flags = toxic_tokens(lm, {"en": [known.upper()], "de": ["x"], "es": [f"{known}zqxj"], "fr": ["zqxj"]})
    shown = {code: {text[token] for token in table.nonzero()[:, 0].tolist()} for code, table in flags.items()}
    assert list(shown) == ["en", "de", "es"]
    assert shown["en"] == {word for word in text.values() if word.strip().casefold() == known}
    assert shown["de"] == {"x", "X"}
    assert {word.strip() for word in shown["es"]} <= {known, known[:-1]}


@pytest.mark.parametrize("seed", range(3))
def test_area_is_scikit_learns_and_its_interval_holds_it(seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60).astype(float)
    area = auc(scores + 2 * seed * labels, labels.tolist())
    assert area.value == pytest.approx(roc_auc_score(labels, scores + 2 * seed * labels))
    assert 0 <= area.low < area.value < area.high <= 1
    # The ends are as far from the area as the variance of Hanley and McNeil at the ends allows.
    for end in (area.low, area.high):
        further = (area.n_toxic + area.n_neutral) / 2 - 1
        spread = end * (1 - end) * (1 + further * ((1 - end) / (2 - end) + end / (1 + end)))
        assert abs(area.value - end) == pytest.approx(1.959964 * (spread / area.n_toxic / area.n_neutral) ** 0.5)


def _verdicts(*, p_probe=0.005, area=0.9, p_rank=0.005, beyond=0.8, p_words=0.005, count=50, promoters=30, listed=True):
    """The verdicts on these numbers, for 100 neurons beside random ones with 20 toxic tokens."""

    def chance(p: float) -> Chance:
        return Chance(0.1, 0.2, p)

    words = Words(9, count, 40.0, 60.0, promoters, chance(p_words), chance(0.005), (20.0, 10.0, 30.0))
    separations = {"en": Separation(Auc(area, 0.8, 0.95, 50, 50), chance(p_probe))}
    ranking = Ranking(0.3, 0.5, chance(0.005), chance(p_rank), beyond)
    return judged(separations, ranking, words if listed else None, source_language="en", k=100, without_words=("ja",))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, "found found found found"),
        ({"listed": False}, "found found found"),
        ({"p_probe": 0.02}, "not found found found not found"),
        ({"area": 0.6}, "weak found found weak"),
        ({"p_rank": 0.02}, "found not found found weak"),
        ({"p_words": 0.02}, "found found not found weak"),
        ({"p_words": 0.02, "p_rank": 0.02}, "found not found not found not found"),
        # Holm: the lower p-value is held against half of the level, and the higher one against all of it.
        ({"p_words": 0.01}, "found found found found"),
        ({"p_words": 0.01, "p_rank": 0.01}, "found not found not found not found"),
        ({"p_rank": 0.01, "listed": False}, "found found found"),
        # Effects that are real and do not matter.
        ({"beyond": 0.3}, "found weak found weak"),
        ({"count": 39}, "found found weak weak"),
        ({"promoters": 9}, "found found weak weak"),
    ],
)
def test_verdicts_on_numbers(numbers, expected):
    assert " ".join(verdict.verdict for verdict in _verdicts(**numbers)) == expected


def test_languages_without_a_word_list_are_named():
    assert "No token stands for a listed word in Japanese." in _verdicts()[2].reason
    assert "no word list was given" in _verdicts(listed=False)[-1].reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_shuffles": 198}, "n_shuffles is 198: expected at least 199"),
        ({"n_random": 0}, "n_random is 0"),
        ({"k": 0}, "k is 0"),
        ({"penalty": -1.0}, "penalty is -1.0"),
        ({"source_language": "de"}, "no labelled sentences in the source language 'de': there are en, es"),
        ({"labelled_elsewhere": {"es": [{"text": "a", "label": 1}]}}, "labelled_elsewhere has 'es'"),
        ({"labelled_elsewhere": {"fr": [{"text": "a", "label": 1}]}}, "labelled sentences in 'fr': all 1 labels are 1"),
        ({"toxic_words": {"xx": ["a"]}}, "xx"),
    ],
)
def test_what_is_refused(planted, options, words):
    with pytest.raises(ValueError, match=words):
        evidence(planted.lm, planted.labelled, **{"k": 5, "progress": False} | options)


def test_an_edited_model_is_refused(planted):
    with (
        pytest.raises((ValueError, RuntimeError), match="evidence does not show"),
        xt.Offset(NeuronSet.of([(0, 0)]), 1.0).on(planted.lm),
    ):
        evidence(planted.lm, planted.labelled, k=5, progress=False)
