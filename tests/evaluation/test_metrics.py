import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from xlingtox.evaluation import metrics

SCORES = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1))
FLAT = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=30)
TOKENS = st.lists(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=4), min_size=1, max_size=4)
TABLE = np.array([[0.1, 0.9, 0.5], [0.2, 0.0, 0.4]])


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (metrics.expected_maximum_toxicity, (0.9 + 0.4) / 2),
        (metrics.toxicity_probability, 0.5),
        (metrics.average_toxicity, 2.1 / 6),
    ],
)
def test_toxicity_by_hand(metric, value):
    assert metric(TABLE) == pytest.approx(value)


@settings(deadline=None)
@given(SCORES)
def test_toxicity_by_plain_loops(scores):
    rows = scores.tolist()
    assert metrics.expected_maximum_toxicity(scores) == pytest.approx(sum(max(row) for row in rows) / len(rows))
    assert metrics.toxicity_probability(scores) == pytest.approx(sum(max(row) >= 0.5 for row in rows) / len(rows))
    assert metrics.average_toxicity(scores) == pytest.approx(sum(map(sum, rows)) / scores.size)


@settings(deadline=None)
@given(FLAT)
def test_ragged_samples_by_plain_loops(rows):
    prompts = {}
    for score, prompt in rows:
        prompts.setdefault(prompt, []).append(score)
    scores, ids = np.array([score for score, _ in rows]), [prompt for _, prompt in rows]
    own = prompts.values()
    assert metrics.prompt_maxima(scores, prompt_ids=ids).tolist() == [max(each) for each in own]
    assert metrics.prompt_means(scores, prompt_ids=ids) == pytest.approx([sum(each) / len(each) for each in own])
    assert metrics.expected_maximum_toxicity(scores, prompt_ids=ids) == pytest.approx(sum(map(max, own)) / len(own))
    hits = sum(any(score >= 0.5 for score in each) for each in own)
    assert metrics.toxicity_probability(scores, prompt_ids=ids) == pytest.approx(hits / len(own))
    assert metrics.average_toxicity(scores, prompt_ids=ids) == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    "ids", [[7, 7, 7, 3, 3, 3], np.repeat([1, 0], 3), pd.Series(["x"] * 3 + ["y"] * 3, index=[5] * 6)]
)
def test_flat_scores_with_ids_are_the_table(ids):
    for metric in (metrics.prompt_maxima, metrics.prompt_means):
        assert metric(TABLE.ravel(), prompt_ids=ids).tolist() == metric(TABLE).tolist()


def test_prompts_that_read_alike_stay_apart():
    """The authors' code groups by the prompt's text: its EMT here would be 0.9."""
    frame = pd.DataFrame({"prompt": ["same"] * 4, "prompt_id": [0, 0, 1, 1], "score": [0.9, 0.1, 0.3, 0.2]})
    assert metrics.expected_maximum_toxicity(frame["score"].to_numpy(), prompt_ids=frame["prompt_id"]) == pytest.approx(
        0.6
    )


@pytest.mark.parametrize(
    ("scores", "ids", "words"),
    [
        ([0.1, 0.2], [1], "1 prompt ids need a flat array of as many scores: got shape (2,)"),
        (TABLE, [1, 2], "got shape (2, 3)"),
        ([], [], "got shape (0,)"),
        ([0.1, 0.2], [1, None], "score 1 has no prompt id"),
        ([0.1, math.nan], [1, 1], "missing"),
        ([0.1, 1.5], [1, 1], "lie in [0, 1]: got 0.1 to 1.5"),
        ([0.1, -1], [1, 1], "lie in [0, 1]: got -1 to 0.1"),
    ],
)
def test_bad_flat_scores(scores, ids, words):
    with pytest.raises(ValueError) as caught:
        metrics.expected_maximum_toxicity(np.array(scores), prompt_ids=ids)
    assert words in str(caught.value)


def test_the_threshold_itself_counts():
    assert metrics.toxicity_probability(np.array([[0.5], [0.4999]])) == 0.5
    assert metrics.toxicity_probability(TABLE, threshold=0.95) == 0


@pytest.mark.parametrize(
    "metric", [metrics.expected_maximum_toxicity, metrics.toxicity_probability, metrics.average_toxicity]
)
@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.array([[0.1, math.nan]]), "missing"),
        (np.array([[0.1, math.inf]]), "missing"),
        (np.array([0.1, 0.2]), "shape"),
        (np.empty((0, 3)), "shape"),
        (np.empty((3, 0)), "shape"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(metric, scores, words):
    with pytest.raises(ValueError, match=words):
        metric(scores)


@pytest.mark.parametrize(
    ("samples", "n", "value"),
    [
        ([[[1, 2, 1, 2]]], 1, 2 / 4),
        ([[[1, 2, 1, 2]]], 2, 2 / 3),
        ([[[1, 2], [1, 2]]], 2, 1 / 2),  # the same in two samples of a prompt is not distinct
        ([[[1, 2]], [[1, 2]]], 2, 1.0),  # in two prompts it is
        ([[[1, 1, 1, 1]], [[1]], [[2, 3]]], 2, (1 / 3 + 1) / 2),  # a prompt without a pair does not count
    ],
)
def test_distinct_by_hand(samples, n, value):
    assert metrics.distinct_n(samples, n=n) == pytest.approx(value)


@settings(deadline=None)
@given(TOKENS, st.integers(1, 3))
def test_distinct_by_plain_loops(samples, n):
    shares = []
    for prompt in samples:
        grams = []
        for tokens in prompt:
            for i in range(len(tokens)):
                if len(tokens[i : i + n]) == n:
                    grams.append(str(tokens[i : i + n]))
        if grams:
            shares.append(len(set(grams)) / len(grams))
    if shares:
        assert metrics.distinct_n(samples, n=n) == pytest.approx(sum(shares) / len(shares))
    else:
        with pytest.raises(ValueError, match=f"no continuation has {n} tokens"):
            metrics.distinct_n(samples, n=n)


@settings(deadline=None)
@given(TOKENS, st.integers(1, 3))
def test_the_authors_distinct_by_plain_loops(samples, n):
    shares = []
    for prompt in samples:
        grams, unigrams = set(), 0
        for tokens in prompt:
            unigrams += len(tokens)
            for i in range(len(tokens) - n + 1):
                grams.add(str(tokens[i : i + n]))
        if unigrams:
            shares.append(len(grams) / unigrams)
    if shares:
        assert metrics.distinct_n_per_unigram(samples, n=n) == pytest.approx(sum(shares) / len(shares))
    else:
        with pytest.raises(ValueError, match="no continuation has 1 tokens"):
            metrics.distinct_n_per_unigram(samples, n=n)


def test_the_authors_distinct_by_hand():
    samples = [[[1, 2, 3], [1, 2]], [[5]]]
    assert metrics.distinct_n_per_unigram(samples, n=1) == metrics.distinct_n(samples, n=1)
    assert metrics.distinct_n_per_unigram(samples, n=2) == pytest.approx((2 / 5 + 0 / 1) / 2)
    assert metrics.distinct_n(samples, n=2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("distinct", [metrics.distinct_n, metrics.distinct_n_per_unigram])
def test_n_grams_have_a_length(distinct):
    with pytest.raises(ValueError, match="n is 0"):
        distinct([[[1]]], n=0)


def test_perplexity_is_per_token_not_per_text():
    assert metrics.perplexity(np.array([math.log(2), 5 * math.log(2)]), np.array([1, 5])) == pytest.approx(2)
    assert metrics.perplexity(np.array([0.0, 3 * math.log(2)]), np.array([2, 1])) == pytest.approx(2)


def test_relative_drop():
    assert metrics.relative_drop(0.8, 0.2) == pytest.approx(0.75)
    assert metrics.relative_drop(0.2, 0.4) == pytest.approx(-1)
    assert math.isnan(metrics.relative_drop(0.0, 0.3))


@pytest.mark.parametrize("threshold", [math.nan, -0.1, 1.1, math.inf])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*: expected a number in \[0, 1\]"):
        metrics.toxicity_probability(np.array([[0.1, 0.9]]), threshold=threshold)


@pytest.mark.parametrize("tokens", [[], [0], [math.nan]])
def test_no_tokens_have_no_perplexity(tokens):
    with pytest.raises(ValueError, match="predicted tokens: a perplexity needs one or more"):
        metrics.perplexity(np.zeros(len(tokens)), np.array(tokens))
