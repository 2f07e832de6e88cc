"""Diversity per unigram and the copying score of continuations, as the paper has them."""

import math

import numpy as np
import pytest
from families import randomised
from transformers import MT5Config, MT5ForConditionalGeneration

import xlingtox as xt
from xlingtox.data import Prompt
from xlingtox.evaluation.copying import copying_score
from xlingtox.models import Continuations

PROMPTS = tuple(Prompt(code, text) for code, text in (("es", "el gato"), ("en", "the cat"), ("en", "the dog")))
BEFORE = Continuations(PROMPTS, 2, (" la casa", " es grande", " sat on the mat", " sat on the mat", " ran", ""))
AFTER = Continuations(PROMPTS, 2, (" la casa la casa", "", " sat", " ran away", " sat the sat the sat", " ran"))


@pytest.fixture(scope="module")
def copier(tokenizer):
    config = MT5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=1, pad_token_id=1
    )
    return randomised(MT5ForConditionalGeneration(config))


def per_unigram(texts, tokenizer, n):
    """Distinct n-grams over all unigrams, written out."""
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    grams = {tuple(ids[i : i + n]) for ids in tokens for i in range(len(ids) - n + 1)}
    return len(grams) / sum(map(len, tokens))


def test_diversity_per_unigram(tokenizer):
    frame = xt.paper.as_published(BEFORE, AFTER, tokenizer=tokenizer).set_index(["measure", "language"])
    assert frame.index.get_level_values("language").unique().tolist() == ["en", "es", "mean"]
    for n in (1, 2, 3):
        rows = frame.loc[f"distinct_{n}_per_unigram"]
        for name, side in (("before", BEFORE), ("after", AFTER)):
            first, second, third = (per_unigram(side.texts[i : i + 2], tokenizer, n) for i in (0, 2, 4))
            assert rows.loc["es", name] == pytest.approx(first)
            assert rows.loc["en", name] == pytest.approx((second + third) / 2)
            assert rows.loc["mean", name] == pytest.approx((first + (second + third) / 2) / 2)
        changes = rows.after - rows.before
        assert (rows.low["en"] <= changes["en"] <= rows.high["en"]).all()
        assert math.isnan(rows.loc["es", "low"])  # a single prompt has no interval


def test_the_interval_is_paired_over_prompts(tokenizer):
    """Where every prompt loses the same, the interval is far narrower than the prompts differ."""
    prompts = tuple(Prompt("en", f"the cat {i}") for i in range(12))
    words = ["the", "cat", "sat", "on", "mat", "dog", "ran", "away"]
    before = Continuations(prompts, 1, tuple(" " + " ".join(words[: 2 + i % 6]) for i in range(12)))
    same = xt.paper.as_published(before, before, tokenizer=tokenizer).set_index(["measure", "language"])
    spread = np.ptp([per_unigram([text], tokenizer, 3) for text in before.texts])
    row = same.loc[("distinct_3_per_unigram", "en")]
    assert row.before == row.after
    assert row.high - row.low < spread


def test_the_copying_score(tokenizer, copier):
    frame = xt.paper.as_published(BEFORE, AFTER, copying=(copier, tokenizer), progress=False)
    rows = frame[frame.measure == "copying_score"].set_index("language")
    for name, side in (("before", BEFORE), ("after", AFTER)):
        medians = copying_score(copier, tokenizer, side, progress=False).medians
        for code in ("en", "es"):
            assert rows.loc[code, name] == pytest.approx(medians[code], nan_ok=True)
        assert rows.loc["mean", name] == pytest.approx(np.mean(list(medians.values())), nan_ok=True)
    assert np.isfinite(rows.loc["en", ["before", "after", "low", "high"]].astype(float)).all()


def test_translations_are_resampled_together(tokenizer):
    prompts = [{"language": code, "prompt": f"{code} {i}", "index": i} for code in ("en", "es") for i in range(6)]
    rows = tuple(Prompt(row["language"], row["prompt"]) for row in prompts)
    texts = [" the cat" * (1 + i % 3) for i in range(6)] * 2
    before, after = (Continuations(rows, 1, tuple(side)) for side in (texts, [" the cat sat"] * 12))
    means = {}
    for name, table in (("alone", None), ("together", prompts)):
        frame = xt.paper.as_published(before, after, tokenizer=tokenizer, prompts=table)
        means[name] = frame[(frame.language == "mean") & (frame.measure == "distinct_1_per_unigram")].iloc[0]
    # Both languages change alike, so that they are one sample and not two.
    assert means["together"].high - means["together"].low > means["alone"].high - means["alone"].low


def test_a_language_without_a_token_has_no_value(tokenizer):
    silent = Continuations(PROMPTS, 2, ("", "", *BEFORE.texts[2:]))
    frame = xt.paper.as_published(BEFORE, silent, tokenizer=tokenizer).set_index(["measure", "language"])
    row = frame.loc[("distinct_1_per_unigram", "es")]
    assert math.isfinite(row.before)
    assert np.isnan(row[["after", "low", "high"]].astype(float)).all()


def test_what_cannot_be_measured_is_refused(tokenizer):
    other = Continuations(PROMPTS[::-1], 2, BEFORE.texts)
    for call, words in (
        (lambda: xt.paper.as_published(BEFORE, AFTER), "give tokenizer="),
        (lambda: xt.paper.as_published(BEFORE, other, tokenizer=tokenizer), "differ in their prompts"),
        (lambda: xt.paper.as_published(BEFORE, AFTER, tokenizer=tokenizer, prompts=["the cat"]), "prompts are others"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
