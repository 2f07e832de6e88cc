"""Retrieval between every two languages equals loops in float64, and `bilingual_retrieval` with each one as pivot."""

import dataclasses
import math
import re

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from studies import HOSTILE

from xlingtox.models.identity import Identity
from xlingtox.transfer import RetrievalBetween, between, bilingual_retrieval, retrieval_between

SENTENCES = {
    "ru": ["дом большой", "кот сидит", "собака", "коврик", "у двери дома", "большой кот"],
    "en": ["the house is large", "the cat sleeps", "a dog", "the mat", "he sat in the house", "it is a large cat"],
    "es": ["la casa es grande", "el gato duerme", "un perro", "la cama", "duerme en la casa", "es un gato grande"],
}
CODES = ("en", "es", "ru")


def found(lm, parallel=SENTENCES, **how):
    return retrieval_between(lm, parallel, progress=False, **how)


def unit_means(model, tokenizer, texts):
    """[layer, text, d_model] in float64, each text alone, of length 1."""
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        rows.append(np.stack([state[0].double().mean(0).numpy() for state in raw.states(model, ids)]))
    means = np.stack(rows, 1)
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_every_pair_of_languages_equals_a_plain_search(family, tokenizer, layers):
    result = found(family.lm, layers=layers)
    assert (result.languages, result.n_sentences, result.layers) == (CODES, 6, tuple(layers or (1, 2)))
    states = {code: unit_means(family.model, tokenizer, SENTENCES[code]) for code in CODES}
    for i, source in enumerate(CODES):
        for j, target in enumerate(CODES):
            if source == target:
                assert math.isnan(result.top1[i, j])
                assert math.isnan(result.aligned_cosine[i, j])
                continue
            cosines = [states[source][layer] @ states[target][layer].T for layer in layers or (1, 2)]
            hits = [table.argmax(1) == np.arange(6) for table in cosines]
            assert result.top1[i, j] == pytest.approx(np.mean(hits))
            assert result.aligned_cosine[i, j] == pytest.approx(np.mean([np.diag(c) for c in cosines]), abs=1e-6)
    assert not np.array_equal(result.top1, result.top1.T, equal_nan=True), "the two directions differ"


def test_it_is_bilingual_retrieval_with_each_language_as_pivot_and_reads_each_once(lm, monkeypatch):
    texts = []
    read = between.mean_states

    def counted(lm, sentences, *rest, **how):
        texts.extend(sentences)
        return read(lm, sentences, *rest, **how)

    monkeypatch.setattr(between, "mean_states", counted)
    repeated = {code: [*sentences, sentences[0]] for code, sentences in SENTENCES.items()}
    repeated["es"][-1] = "una casa grande"  # a sentence with two translations
    result = found(lm, repeated)
    assert sorted(texts) == sorted(text for sentences in repeated.values() for text in sentences)
    for i, pivot in enumerate(CODES):
        known = bilingual_retrieval(lm, repeated, pivot=pivot, progress=False)
        for j, code in enumerate(CODES):
            if code != pivot:
                assert result.top1[i, j] == pytest.approx(known.mean("top1_from_pivot")[code])
                assert result.top1[j, i] == pytest.approx(known.mean("top1_to_pivot")[code])
                assert result.aligned_cosine[i, j] == pytest.approx(known.mean("aligned_cosine")[code], abs=1e-6)


def test_both_forms_of_parallel_sentences(lm):
    expected = found(lm)
    rows = [
        {"language": code, "sentence": sentence, "translation": english}
        for code in ("es", "ru")
        for sentence, english in zip(SENTENCES[code], SENTENCES["en"], strict=True)
    ]
    for parallel in (Dataset.from_dict(SENTENCES), Dataset.from_list(rows)):
        assert found(lm, parallel) == expected
    rows[-1]["translation"] = "a cat"
    with pytest.raises(ValueError, match="the sentences of es and ru are translations of other sentences: give"):
        found(lm, Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"es": ["a", "b"]}, "two languages and two rows: got 1 and 2"),
        ({"es": ["a"], "ru": ["b"]}, "two rows"),
        ({}, "no column for the pivot"),
        ({"es": ["a", "b"], "ru": ["a", " "]}, "parallel sentence 1 in ru is blank"),
        ({"es": ["a", "b"], "xx": ["a", "b"]}, "unknown language 'xx'"),
        ({"es": ["a", "b"], "ru": ["a"]}, "misaligned parallel sentences: 2 in es, 1 in ru"),
        ({"en": ["a", "b"], "es": ["c", "d"], "ru": ["e", "e"]}, "all 2 sentences of ru are the same"),
    ],
)
def test_bad_parallel_sentences_get_one_clear_line(lm, parallel, words):
    with pytest.raises(ValueError, match=words) as raised:
        found(lm, parallel)
    assert "\n" not in str(raised.value)


def test_other_bad_input(lm, monkeypatch):
    for layers in ([], [3], [-1, 1]):
        with pytest.raises(ValueError, match=re.escape(f"layers is {layers}: expected some of 0 to 2")):
            found(lm, layers=layers)
    with pytest.raises(ValueError, match="batch_size is 0"):
        found(lm, batch_size=0)
    read = between.mean_states

    def broken(lm, texts, layers, **how):
        states = read(lm, texts, layers, **how)
        states[0, list(texts).index(SENTENCES["ru"][3]), 5] = math.nan
        return states

    monkeypatch.setattr(between, "mean_states", broken)
    with pytest.raises(ValueError, match="the state of sentence 3 of ru at layer 2 is NaN or infinite"):
        found(lm, layers=[2])


def test_saved_and_loaded_is_equal(lm, tmp_path):
    result = found(lm)
    result.save(tmp_path / "found.safetensors")
    assert RetrievalBetween.load(tmp_path / "found.safetensors") == result
    assert result.model == lm.identity()
    for name, value in (("languages", ("en", "es", "zh")), ("top1", result.top1 + 1e-9), ("n_sentences", 7)):
        assert dataclasses.replace(result, **{name: value}) != result
    (tmp_path / "other").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        RetrievalBetween.load(tmp_path / "other")


def test_frame_words_and_table(lm):
    result = dataclasses.replace(found(lm), model=Identity(HOSTILE, None, "float32", "0"))
    frame = result.to_frame()
    assert list(zip(frame["source"], frame["target"], strict=True))[:3] == [("en", "es"), ("en", "ru"), ("es", "en")]
    assert frame["top1"].tolist() == pytest.approx(result.top1[~np.eye(3, dtype=bool)].tolist())
    assert repr(result).startswith("RetrievalBetween(3 languages, 6 sentences; top-1 ")
    shown = result._repr_html_()
    assert shown.count("<tr>") == 4
    assert "<img" not in shown


def test_other_languages_change_nothing_for_two(lm):
    alone = found(lm, {code: SENTENCES[code] for code in ("es", "en")})
    np.testing.assert_allclose(alone.top1, found(lm).top1[:2, :2])
