import itertools

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from scipy import stats

from xlingtox import retrieval
from xlingtox.comparison import Comparison, Measures

SENTENCES = {
    "es": ["la casa es grande", "el gato duerme", "un perro", "la cama", "duerme en la casa", "es un gato grande"],
    "en": ["the house is large", "the cat sleeps", "a dog", "the mat", "he sat in the house", "it is a large cat"],
    "ru": ["дом большой", "кот сидит", "собака", "коврик", "у двери дома", "большой кот"],
}


def numbered(n):
    """Sentences of several lengths, no two with the same tokens: before the first block their order hardly counts."""
    letters = itertools.combinations("bcdfghjklm", 3)
    return [" ".join(["the cat", *next(letters), "ran " * (i % 4), "away"]) for i in range(n)]


def accuracy(lm, columns, **how):
    return retrieval.accuracy(lm, Dataset.from_dict(columns), progress=False, **how)


def raw_means(model, tokenizer, texts):
    """[layer, text, d_model] in float64, each text alone."""
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        rows.append(np.stack([state[0].double().mean(0).numpy() for state in raw.states(model, ids)]))
    return np.stack(rows, 1)


@pytest.mark.parametrize("pivot", ["en", "ru"])
def test_accuracy_equals_numpy_by_hand(model, lm, tokenizer, pivot):
    found = accuracy(lm, SENTENCES, pivot=pivot)
    others = [code for code in ("en", "es", "ru") if code != pivot]
    assert (found.pivot, found.n_sentences, list(found.top1)) == (pivot, 6, others)
    own = raw_means(model, tokenizer, SENTENCES[pivot])
    for code in others:
        other = raw_means(model, tokenizer, SENTENCES[code])
        for layer in range(3):
            a, b = (side[layer] / np.linalg.norm(side[layer], axis=1)[:, None] for side in (own, other))
            hits = [int((a[i] @ b.T).argmax() == i) + int((b[i] @ a.T).argmax() == i) for i in range(6)]
            assert found.top1[code][layer] == pytest.approx(sum(hits) / 12)
            assert found.aligned_cosine[code][layer] == pytest.approx((a * b).sum(1).mean(), abs=1e-5)
        assert found.mean()[code] == pytest.approx(np.mean(found.top1[code][1:]))
    frame = found.to_frame()
    assert list(frame.columns) == ["language", "layer", "top1", "aligned_cosine"]
    assert list(zip(frame["language"], frame["layer"], strict=True)) == [(c, n) for c in others for n in range(3)]
    assert tuple(frame[frame["language"] == others[1]]["top1"]) == found.top1[others[1]]


def test_identical_sides_are_always_found(lm):
    found = accuracy(lm, {"en": numbered(70), "es": numbered(70)})
    assert found.top1["es"] == (1.0, 1.0, 1.0)
    assert found.aligned_cosine["es"] == pytest.approx((1.0, 1.0, 1.0))
    assert found.mean() == {"es": 1.0}


def test_shuffled_sides_are_found_by_chance(lm):
    """Each sentence finds its twin, which is in its own row as often as a permutation has fixed points."""
    twins = numbered(40)
    moved = [*twins[1:-1], twins[0], twins[-1]]
    found = accuracy(lm, {"en": twins, "es": moved})
    assert found.top1["es"] == pytest.approx((1 / 40,) * 3)


@pytest.mark.parametrize("n", [5, 70])
def test_a_tie_is_a_miss(lm, n):
    """The last two sentences of the other side are the same: neither can be told from the other."""
    own, other = numbered(n), numbered(n)
    other[-1] = other[-2]
    own[-1] = own[-2]
    found = accuracy(lm, {"en": own, "es": other})
    assert found.top1["es"] == pytest.approx(((n - 2) / n,) * 3)


def test_accuracy_does_not_depend_on_the_other_columns(lm):
    both = accuracy(lm, SENTENCES)
    alone = accuracy(lm, {code: SENTENCES[code] for code in ("en", "ru")})
    assert both.top1["ru"] == alone.top1["ru"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"es": ["a", "b"], "ru": ["a", "b"]}, "no column for the pivot 'en'"),
        ({"en": ["a", "b"]}, "two languages"),
        ({"en": ["a"], "es": ["b"]}, "two rows"),
        ({"en": ["a", "b"], "es": ["a", " "]}, "parallel sentence 1 in es is blank"),
        ({"en": ["a", "b"], "xx": ["a", "b"]}, "unknown language 'xx'"),
    ],
)
def test_bad_parallel_sentences(lm, columns, words):
    with pytest.raises(ValueError, match=words):
        accuracy(lm, columns)


# --- transfer


def measures(emt, average):
    return Measures(emt, 0.5, average, 0.0, 10.0, 0.9, 0.9, 0.9, 0.1)


def observed(codes, seed=0, before=None):
    rng = np.random.default_rng(seed)
    first = {code: measures(*rng.uniform(0.5, 1, 2)) for code in codes} | (before or {})
    return Comparison(first, {code: measures(*rng.uniform(0, 0.5, 2)) for code in codes}, {}, "hash")


def found(codes, seed=0):
    rng = np.random.default_rng(seed)
    top1 = {code: tuple(rng.uniform(0, 1, 3)) for code in codes}
    return retrieval.Retrieval("en", top1, top1, 10)


CODES = ("es", "fr", "de", "ru", "zh", "ar")


@pytest.mark.parametrize("measure", ["emt", "average_toxicity"])
def test_transfer_equals_scipy(measure):
    diff, retrieved = observed(("en", *CODES)), found(CODES)
    result = retrieval.transfer(retrieved, diff, measure)
    x = [np.mean(retrieved.top1[code][1:]) for code in CODES]
    y = [1 - getattr(diff.after[code], measure) / getattr(diff.before[code], measure) for code in CODES]
    expected = stats.pearsonr(x, y)
    assert result.pearson_r == pytest.approx(expected.statistic)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.measure == measure
    assert list(result.retrieval) == list(result.drop) == list(CODES)  # English, which was tuned, is not among them
    assert list(result.drop.values()) == pytest.approx(y)


def test_transfer_needs_three_languages_with_both():
    few = retrieval.transfer(found(CODES), observed(("en", *CODES[:3])))
    assert list(few.drop) == list(CODES[:3])
    with pytest.raises(ValueError, match="share 2 languages"):
        retrieval.transfer(found(CODES), observed(("en", *CODES[:2])))
    with pytest.raises(ValueError, match="share 2 languages"):  # nothing toxic before: no relative drop
        retrieval.transfer(found(CODES[:3]), observed(CODES[:3], before={"fr": measures(0.0, 0.5)}))


def test_prediction_is_retrieval_then_transfer(lm):
    table = Dataset.from_dict(SENTENCES | {"de": ["haus", "katze da", "ein hund", "im haus", "hund und", "das ist"]})
    diff = observed(("en", "es", "ru", "de"))
    predicted = retrieval.predict_transfer(lm, table, diff, "average_toxicity", progress=False)
    assert predicted == retrieval.transfer(retrieval.accuracy(lm, table, progress=False), diff, "average_toxicity")
    assert set(predicted.retrieval) == {"es", "ru", "de"}
