import itertools

import numpy as np
import pytest
import raw
import torch
from conftest import N_POSITIONS
from datasets import Dataset
from scipy import stats

from xlingtox import retrieval
from xlingtox.retrieval import MEASURES, Retrieval

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
    return retrieval.accuracy(lm, columns, progress=False, **how)


def raw_means(model, tokenizer, texts):
    """[layer, text, d_model] in float64, each text alone."""
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        rows.append(np.stack([state[0].double().mean(0).numpy() for state in raw.states(model, ids)]))
    return np.stack(rows, 1)


def by_hand(a, b, k):
    """Each measure's mean over sentences of one layer, in plain loops."""
    n = len(a)
    cosine = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
    near_b = [sorted(cosine[i])[-k:] for i in range(n)]
    near_a = [sorted(cosine[:, j])[-k:] for j in range(n)]
    csls = np.array([[2 * cosine[i, j] - np.mean(near_b[i]) - np.mean(near_a[j]) for j in range(n)] for i in range(n)])
    forth, back, ranks, corrected, margins = [], [], [], [], []
    for table, top1 in ((cosine, forth), (cosine.T, back)):
        for i in range(n):
            order = sorted(range(n), key=lambda j, row=table[i]: -row[j])
            top1.append(order[0] == i)
            ranks.append(1 / (order.index(i) + 1))
            margins.append(table[i, i] - max(table[i, j] for j in range(n) if j != i))
    for table in (csls, csls.T):
        corrected += [max(range(n), key=lambda j, row=table[i]: row[j]) == i for i in range(n)]
    found = [forth + back, forth, back, ranks, corrected, margins, cosine.diagonal()]
    return dict(zip(MEASURES, map(np.mean, found), strict=True))


@pytest.mark.parametrize(("pivot", "k"), [("en", 10), ("ru", 2)])
def test_every_measure_equals_loops_in_float64(model, lm, tokenizer, pivot, k):
    found = accuracy(lm, SENTENCES, pivot=pivot, n_neighbours=k)
    others = [code for code in ("en", "es", "ru") if code != pivot]
    assert (found.pivot, found.n_sentences, list(found.scores)) == (pivot, dict.fromkeys(others, 6), others)
    frame = found.to_frame()
    assert list(zip(frame["language"], frame["layer"], strict=True)) == [(c, n) for c in others for n in range(3)]
    own = raw_means(model, tokenizer, SENTENCES[pivot])
    for code in others:
        other = raw_means(model, tokenizer, SENTENCES[code])
        expected = [by_hand(own[layer], other[layer], min(k, 6)) for layer in range(3)]
        for measure in MEASURES:
            values = [each[measure] for each in expected]
            assert found.by_layer(measure)[code] == pytest.approx(values, abs=1e-6)
            assert list(frame[frame["language"] == code][measure]) == pytest.approx(values, abs=1e-6)
            assert found.mean(measure)[code] == pytest.approx(np.mean(values[1:]), abs=1e-6)


def test_embedding_is_every_layer_s_mean(model, lm, tokenizer):
    states = retrieval.embed(lm, SENTENCES["en"], batch_size=4, progress=False)
    np.testing.assert_allclose(states.numpy(), raw_means(model, tokenizer, SENTENCES["en"]), atol=1e-5)


def test_identical_sides_are_always_found(lm):
    found = accuracy(lm, {"en": numbered(70), "es": numbered(70)})
    for measure in ("top1", "mean_reciprocal_rank", "csls_top1", "aligned_cosine"):
        assert found.by_layer(measure)["es"] == pytest.approx((1.0, 1.0, 1.0))
    assert found.by_layer("margin")["es"][1] > 0
    assert found.intervals()["es"] == pytest.approx((stats.binomtest(70, 70).proportion_ci().low, 1.0))
    assert found.intervals("aligned_cosine")["es"] == pytest.approx((1.0, 1.0))


def test_shuffled_sides_are_found_by_chance_and_the_interval_covers_it(lm):
    twins = numbered(40)
    shares = []
    for seed in range(12):
        order = np.random.default_rng(seed).permutation(40)
        found = accuracy(lm, {"en": twins, "es": [twins[i] for i in order]})
        fixed = sum(i == place for place, i in enumerate(order))
        assert found.by_layer()["es"] == pytest.approx((fixed / 40,) * 3)
        low, high = found.intervals()["es"]
        assert low <= 1 / 40 <= high
        shares.append(found.mean()["es"])
    assert np.mean(shares) == pytest.approx(1 / 40, abs=0.02)


@pytest.mark.parametrize("n", [5, 70])
def test_a_twin_is_no_mistake_and_is_counted(lm, n):
    own, other = numbered(n), numbered(n)
    other[-1] = other[-2]
    found = accuracy(lm, {"en": own, "es": other})
    # The last English sentence finds its own twin's place at chance; all others are found.
    assert found.duplicates == {"es": 2}
    assert min(found.by_layer("top1_to_pivot")["es"]) >= (n - 1) / n
    own[-1] = own[-2]
    both = accuracy(lm, {"en": own, "es": other})
    assert both.by_layer()["es"] == (1.0, 1.0, 1.0)
    assert both.duplicates == {"es": 2}
    assert accuracy(lm, {"en": numbered(n), "es": numbered(n)}).duplicates == {"es": 0}


def test_a_tie_of_different_sentences_is_a_miss_and_is_counted(lm):
    """Two sentences that differ beyond the model's context only."""
    own = numbered(8)
    other = [*own[:6], "cat " * (4 * N_POSITIONS) + "one", "cat " * (4 * N_POSITIONS) + "two"]
    found = accuracy(lm, {"en": other, "es": other})
    assert found.by_layer()["es"] == (6 / 8,) * 3
    assert found.ties["es"] == (4, 4, 4)
    assert found.duplicates["es"] == 0


def test_accuracy_depends_on_nothing_but_the_pair(lm, monkeypatch):
    both = accuracy(lm, SENTENCES)
    alone = accuracy(lm, {code: SENTENCES[code] for code in ("en", "ru")})
    monkeypatch.setattr(retrieval, "_MOST_BYTES", 0)  # each language is read by itself
    for other in (alone, accuracy(lm, SENTENCES, batch_size=2)):
        np.testing.assert_allclose(both.scores["ru"], other.scores["ru"], atol=1e-6)


def test_rows_whose_english_differs_are_as_columns_of_one_language_at_a_time(lm):
    rows = {"language": [], "sentence": [], "translation": []}
    parts = {"es": slice(0, 4), "ru": slice(2, 6)}
    for code, part in reversed(parts.items()):
        rows["language"] += [code] * 4
        rows["sentence"] += SENTENCES[code][part]
        rows["translation"] += SENTENCES["en"][part]
    found = accuracy(lm, Dataset.from_dict(rows))
    assert list(found.scores) == ["es", "ru"]
    for code, part in parts.items():
        columns = Dataset.from_dict({"en": SENTENCES["en"][part], code: SENTENCES[code][part]})
        np.testing.assert_allclose(found.scores[code], accuracy(lm, columns).scores[code], atol=1e-6)


def rows(*given):
    return [dict(zip(("language", "sentence", "translation"), each, strict=True)) for each in given]


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"es": ["a", "b"], "ru": ["a", "b"]}, "no column for the pivot 'en'"),
        ({"en": ["a", "b"]}, "two languages"),
        ({"en": ["a"], "es": ["b"]}, "two rows"),
        ({"en": ["a", "b"], "es": ["a", " "]}, "parallel sentence 1 in es is blank"),
        ({"en": ["a", "b"], "es": ["a", None]}, "parallel sentence 1 in es is blank"),
        ({"en": ["a", "b"], "xx": ["a", "b"]}, "unknown language 'xx'"),
        ({"en": ["a", "b", "c"], "es": ["a", "b"]}, "misaligned parallel sentences: 3 in en, 2 in es"),
        ({"en": ["a", "b"], "es": []}, "misaligned parallel sentences: 2 in en, 0 in es"),
        ({"en": ["a", "b"], "es": ["a", "a"]}, "all 2 sentences of es are the same"),
        ({"en": ["a", "a", "b"], "es": ["c", "d", "c"]}, "repeats a side of 'c'"),
        (["a", "b"], "expected a datasets.Dataset, got list"),
        (rows(("es", "a", "b"), ("es", "c", None)), r"row 1 of the parallel sentences \(es\) has no translation"),
        (rows(("es", "a", "b"), ("es", " ", "c")), "has no sentence"),
        (rows(("es", "a", "b"), ("es", "c", "d"), ("ru", "a", "b")), "ru has no second one"),
        (rows(("es", "a", "b"), ("en", "c", "d")), "rows of the pivot 'en'"),
        (rows(("xx", "a", "b"), ("xx", "c", "d")), "unknown language 'xx'"),
    ],
)
def test_bad_parallel_sentences_get_one_clear_line(lm, parallel, words):
    given = Dataset.from_list(parallel) if isinstance(parallel, list) and isinstance(parallel[0], dict) else parallel
    with pytest.raises(ValueError, match=words) as raised:
        accuracy(lm, given)
    assert "\n" not in str(raised.value)


def test_other_bad_input(lm):
    with pytest.raises(ValueError, match="n_neighbours is 0"):
        accuracy(lm, SENTENCES, n_neighbours=0)
    with pytest.raises(ValueError, match="unknown measure 'rank': expected one of top1"):
        accuracy(lm, SENTENCES).mean("rank")
    with pytest.raises(ValueError, match="no texts"):
        retrieval.embed(lm, [], progress=False)


# --- results


def made(scores):
    """A result of one language from [layer, sentence], the same in every measure."""
    values = np.stack([scores] * len(MEASURES))
    return Retrieval("en", {"es": values}, {"es": (0,) * len(scores)}, {"es": 0})


def test_intervals_are_bootstraps_over_sentences():
    scores = np.random.default_rng(1).uniform(size=(4, 60))
    found = made(scores)
    for values, own in [(scores[1:].mean(0), found.intervals("margin")["es"])] + [
        (scores[layer], tuple(found.to_frame()[["margin_low", "margin_high"]].iloc[layer])) for layer in range(4)
    ]:
        known = stats.bootstrap((values,), np.mean, method="percentile", random_state=0).confidence_interval
        assert own == pytest.approx((known.low, known.high), abs=0.01)
    wide, narrow = (np.diff(found.intervals(level=level)["es"])[0] for level in (0.99, 0.5))
    assert wide > 2 * narrow


def test_the_best_layer_is_told_on_sentences_that_did_not_choose_it():
    """Of 100 layers of noise the best looks good on the sentences that chose it, and on no others."""
    noise = np.random.default_rng(0).integers(0, 2, (101, 200)).astype(float)
    assert noise[1:].mean(1).max() > 0.57
    told = [made(noise).best_layer(seed=seed).means["es"] for seed in range(30)]
    assert np.mean(told) == pytest.approx(0.5, abs=0.03)
    noise[[0, 7]] = 1.0
    best = made(noise).best_layer()
    assert (best.layer, best.means["es"]) == (7, 1.0)  # the embedding's output takes no part
    assert best.intervals["es"] == pytest.approx((0.025 ** (1 / 100), 1.0))


def test_saved_and_loaded_is_equal(lm, tmp_path):
    found = accuracy(lm, SENTENCES)
    found.save(tmp_path / "found.safetensors")
    again = Retrieval.load(tmp_path / "found.safetensors")
    assert (again.pivot, again.ties, again.duplicates, again.model) == (
        found.pivot,
        found.ties,
        found.duplicates,
        lm.identity(),
    )
    assert list(again.scores) == list(found.scores)
    assert all((again.scores[code] == found.scores[code]).all() for code in found.scores)
    assert repr(again).startswith("Retrieval(en and 2 languages, 3 layers")
    beside = tmp_path / "found.safetensors.json"
    beside.write_text(beside.read_text().replace("margin", "other"))
    with pytest.raises(ValueError, match="has the measures"):
        Retrieval.load(tmp_path / "found.safetensors")
