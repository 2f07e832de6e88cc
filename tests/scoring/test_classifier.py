"""ClassifierScorer against transformers' own pipeline, on small random XLM-R models."""

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import pickled, xlm_roberta

from xlingtox.scoring import PRESETS, Cached, ClassifierScorer, UncoveredLanguage, agreement, classifier

TEXTS = [
    "the cat sat on the mat",
    "fool",
    "you are a stupid fool and everybody knows it",
    "el gato duerme en la cama de la casa grande",
    "кот сидит на коврике у двери",
    "彼は泥棒です",
    "شكرا جزيلا",
    "",
    "a\0b",
    "the cat " * 20,
]
CODES = ["en", "en", "en", "es", "ru", "ja", "ar", "en", "en", "en"]
COVERED = ["ar", "en", "es", "ja", "ru"]
HEADS = {
    "softmax": {"id2label": {0: "neutral", 1: "toxic"}},
    "softmax, toxic first": {"id2label": {0: "Toxic", 1: "non-toxic"}},
    "three that exclude each other": {
        "id2label": {0: "toxic", 1: "neutral", 2: "spam"},
        "problem_type": "single_label_classification",
    },
    "one logit": {"id2label": {0: "toxicity"}},
    "one logit without a name": {"id2label": {0: "LABEL_0"}},
    "several at once": {
        "id2label": {0: "insult", 1: "severe_toxicity", 2: "toxicity"},
        "problem_type": "multi_label_classification",
    },
}


def made(**config):
    return xlm_roberta(config, TEXTS)


def scorer_of(pair, **options):
    return ClassifierScorer(pair[0], languages=COVERED, tokenizer=pair[1], progress=False, **options)


@pytest.fixture(scope="module")
def pair():
    return made(**HEADS["softmax"])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equal_to_the_pipeline(head, batch_size):
    model, tokenizer = made(**HEADS[head])
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
    scorer = scorer_of((model, tokenizer), batch_size=batch_size)
    toxic = {"toxic", "Toxic", "toxicity", "LABEL_0"}
    expected = [
        next(row["score"] for row in labels if row["label"] in toxic)
        for labels in pipeline(TEXTS, truncation=True, max_length=64)
    ]
    scores = scorer.score(TEXTS, CODES)
    assert scores.dtype == np.float64
    # float32 rounds by up to 7e-7 here, and the tokenizer's training is not the same every time.
    np.testing.assert_allclose(scores, expected, rtol=0, atol=3e-6)
    assert scores.std() > 0.01


def test_a_head_that_the_configuration_tells_wrongly(pair):
    """Sigmoid of the toxic logit, worked out here."""
    model, tokenizer = pair
    encoded = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        logit = model(input_ids=encoded["input_ids"]).logits[0, 0].item()
    scores = scorer_of(pair, activation="sigmoid", toxic_label="Neutral").score(TEXTS[:1], ["en"])
    assert scores[0] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_of_a_long_text_the_beginning_is_read(pair):
    """64 tokens: 66 positions, of which RoBERTa leaves two unused."""
    model, tokenizer = pair
    long = "the cat sat " * 40_000
    ids = [*tokenizer(long[:2000])["input_ids"][:63], tokenizer.eos_token_id]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0, 1].item()
    assert scorer_of(pair).score([long, "a"], ["en", "en"])[0] == pytest.approx(expected, abs=1e-6)


def test_a_model_without_a_limit_and_with_absolute_positions():
    """BERT counts positions from 0, and knows token types."""
    tokenizer = made()[1]
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        pad_token_id=1,
        id2label={0: "clean", 1: "toxic"},
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.tensor([[*tokenizer("the cat sat " * 20)["input_ids"][:15], 2]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits.softmax(-1)[0, 1].item()
    scores = scorer_of((model, tokenizer)).score(["the cat sat " * 20, ""], ["en", "en"])
    assert scores[0] == pytest.approx(expected, abs=1e-6)


def test_a_model_from_a_folder(pair, tmp_path):
    model, tokenizer = pair
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = ClassifierScorer(tmp_path, languages=COVERED, device="cpu", progress=False)
    memory = scorer_of(pair)
    assert (loaded.name, loaded.languages) == (str(tmp_path), frozenset(COVERED))
    assert loaded.revision == memory.revision
    np.testing.assert_allclose(loaded.score(TEXTS, CODES), memory.score(TEXTS, CODES), atol=1e-7)


def test_the_revision_is_of_all_that_a_score_depends_on(pair):
    base = scorer_of(pair)
    assert " toxic softmax float32 " in base.revision
    others = [
        scorer_of(pair, toxic_label="neutral"),
        scorer_of(pair, activation="sigmoid"),
        scorer_of(pair, dtype=torch.bfloat16),
        scorer_of(made(**HEADS["softmax"], initializer_range=0.2)),
    ]
    assert len({base.revision, *(scorer.revision for scorer in others)}) == 5
    assert scorer_of(pair, batch_size=2).revision == base.revision
    base.score(TEXTS, CODES)
    assert scorer_of((pair[0], base._tokenizer)).revision == base.revision


def test_a_model_that_was_changed_after_it_came_from_the_hub_has_scores_of_its_own(tmp_path):
    model, tokenizer = made(**HEADS["softmax"])
    model.config._commit_hash = "a" * 40
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for weight in tuned.classifier.parameters():
            weight.mul_(-3).add_(0.2)
    first, second = scorer_of((model, tokenizer)), scorer_of((tuned, tokenizer))
    file = tmp_path / "scores.sqlite"
    for scorer in (first, second):
        assert "a" * 40 not in scorer.revision
        assert (
            Cached(scorer, path=file, progress=False).score(TEXTS, CODES).tolist()
            == scorer.score(TEXTS, CODES).tolist()
        )
    assert first.revision != second.revision


def test_tokenizers_and_limits_are_told_apart(pair, tmp_path):
    model, tokenizer = pair
    short, small_tokenizer = copy.deepcopy(tokenizer), xlm_roberta(HEADS["softmax"], TEXTS[:1])[1]
    short.model_max_length = 5
    scorers = [scorer_of((model, choice)) for choice in (tokenizer, short, small_tokenizer)]
    assert len({scorer.revision for scorer in scorers}) == 3
    for scorer in scorers:
        cached = Cached(scorer, path=tmp_path / "scores.sqlite", progress=False)
        assert cached.score(TEXTS[:3], CODES[:3]).tolist() == scorer.score(TEXTS[:3], CODES[:3]).tolist()
    before = scorers[0].score(TEXTS, CODES)
    longest = tokenizer.model_max_length
    tokenizer.model_max_length = 3
    try:
        assert np.array_equal(scorers[0].score(TEXTS, CODES), before)
    finally:
        tokenizer.model_max_length = longest


def test_a_hub_commit_stands_for_its_tokenizer_but_for_no_other(pair, monkeypatch):
    model, tokenizer = made(**HEADS["softmax"])
    model.config._commit_hash = "b" * 40
    monkeypatch.setattr(classifier, "_loaded", lambda source, chosen, **_: (model, chosen or tokenizer, source))
    assert ClassifierScorer("some/model", languages=["en"]).revision == f"{'b' * 40} toxic softmax float32"
    named = ClassifierScorer("some/model", languages=["en"], tokenizer=tokenizer).revision
    assert named.startswith(f"{'b' * 40} toxic softmax float32 ")


def test_the_model_given_stays_as_it_is(pair):
    model, tokenizer = made(**HEADS["softmax"], hidden_dropout_prob=0.5)
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scorer = scorer_of((model, tokenizer), dtype=torch.float64)
    assert np.array_equal(scorer.score(TEXTS, CODES), scorer.score(TEXTS, CODES))
    assert model.training
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_memory_that_runs_out_and_a_cache(pair, tmp_path, monkeypatch):
    expected, scorer = scorer_of(pair).score(TEXTS, CODES), scorer_of(pair)
    forward = scorer._model.forward

    def tight(*args, **inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **inputs)

    monkeypatch.setattr(scorer._model, "forward", tight)
    cached = Cached(scorer, path=tmp_path / "scores.sqlite", progress=False)
    for _ in range(2):
        np.testing.assert_allclose(cached.score(TEXTS, CODES), expected, atol=1e-6)
        monkeypatch.setattr(scorer._model, "forward", None)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters()), max_size=5))
def test_any_text_has_a_score(pair, texts):
    texts += ["\ud800", "\udc00\ud800", "\0", "שלום \u202e", "x" * 100_000]
    scores = scorer_of(pair).score(texts, ["en"] * len(texts))
    assert ((scores > 0) & (scores < 1)).all()


def test_lone_surrogates_are_read_as_unknown_characters(pair):
    same = scorer_of(pair).score(["a \ud800 b", "a \ufffd b", "\ud83d\ude00", "😀"], ["en"] * 4)
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    assert same[2] == pytest.approx(same[3], abs=1e-6)


def test_presets_cover_what_their_cards_say(pair, monkeypatch):
    assert {name: set(preset.languages) for name, preset in PRESETS.items()} == {
        "textdetox/xlmr-large-toxicity-classifier": set("am ar de en es hi ru uk zh".split()),
        "textdetox/xlmr-large-toxicity-classifier-v2": set("am ar de en es fr he hi hi-Latn it ja ru tt uk zh".split()),
        "unitary/multilingual-toxic-xlm-roberta": set("en es fr it pt ru tr".split()),
    }
    monkeypatch.setattr(classifier, "_loaded", lambda source, _, **__: (*pair, source))
    for name, kind in zip(PRESETS, ("softmax", "softmax", "sigmoid"), strict=True):
        scorer = ClassifierScorer(name, progress=False)
        assert (scorer.name, scorer.languages) == (name, PRESETS[name].languages)
        assert kind in scorer.revision
        with pytest.raises(UncoveredLanguage, match=f"{name} does not cover sv: it covers "):
            scorer.score(["a"], ["sv"])
    assert ClassifierScorer(name, languages=["en"], activation="softmax").languages == {"en"}


def test_a_preset_has_its_commit_unless_another_is_asked_for(pair, monkeypatch):
    asked = []
    monkeypatch.setattr(
        classifier, "_loaded", lambda source, _, revision, **__: asked.append(revision) or (*pair, source)
    )
    unitary = "unitary/multilingual-toxic-xlm-roberta"
    for options in ({}, {"revision": "refs/pr/2"}):
        ClassifierScorer(unitary, progress=False, **options)
    assert asked == [PRESETS[unitary].revision, "refs/pr/2"]
    assert len(asked[0]) == 40


def test_pickled_weights_are_not_read(tmp_path):
    model, tokenizer = xlm_roberta(HEADS["softmax"], TEXTS)
    tokenizer.save_pretrained(tmp_path)
    pickled(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights in safetensors"):
        ClassifierScorer(tmp_path, languages=["en"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (HEADS["softmax"], {"languages": None}, "say which languages"),
        (HEADS["softmax"], {"languages": []}, "say which languages"),
        (
            HEADS["softmax"],
            {"languages": ["en", "EN", "klingon"]},
            "unknown language 'EN', 'klingon': expected one of am",
        ),
        (HEADS["softmax"], {"batch_size": 0}, "batch_size is 0"),
        (HEADS["softmax"], {"tokenizer": None}, "in memory needs its tokenizer"),
        (HEADS["softmax"], {"toxic_label": "spam"}, "no label 'spam': give toxic_label, one of 0: 'neutral', 1: 'tox"),
        (HEADS["softmax"], {"toxic_label": 2}, "no label 2"),
        (HEADS["softmax"], {"activation": "tanh"}, "activation is 'tanh' .*expected one of 'sigmoid', 'softmax'"),
        ({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, {}, "not clear: give toxic_label, one of 0: 'LABEL_0'"),
        ({"id2label": {0: "toxic", 1: "toxicity"}}, {}, "not clear"),
        ({"id2label": {0: "non-toxic"}}, {}, "not clear"),
        ({"id2label": {0: "toxic", 1: "insult", 2: "threat"}}, {}, "does not say whether its 3 labels exclude"),
        ({"id2label": {0: "toxic"}, "problem_type": "regression"}, {}, "is a regression"),
    ],
)
def test_what_is_not_clear_is_asked_for(config, options, words):
    model, tokenizer = made(**config)
    arguments = {"languages": ["en"], "tokenizer": tokenizer, **options}
    with pytest.raises(ValueError, match=words):
        ClassifierScorer(model, languages=arguments.pop("languages"), progress=False, **arguments)


def test_a_model_that_is_no_classifier(pair, tmp_path):
    transformers.XLMRobertaModel(pair[0].config).save_pretrained(tmp_path)
    pair[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 4 of the model's weights, classifier"):
        ClassifierScorer(tmp_path, languages=["en"])
    with pytest.raises(FileNotFoundError, match="no-such/model is no folder"):
        ClassifierScorer("no-such/model", languages=["en"])


def test_a_tokenizer_that_cannot_pad_and_a_text_without_tokens(pair, tokenizer):
    config = transformers.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=1, n_head=2, pad_token_id=1, id2label={0: "clean", 1: "toxic"}
    )
    model = transformers.GPT2ForSequenceClassification(config)
    scores = scorer_of((model, tokenizer)).score(["the cat", "a"], ["en", "en"])
    assert ((scores > 0) & (scores < 1)).all()
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        scorer_of((model, tokenizer)).score(["the cat", ""], ["en", "en"])
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    with pytest.raises(ValueError, match="has no padding token"):
        scorer_of((model, bare))


@pytest.mark.parametrize("cached", [False, True])
def test_a_text_is_read_once_for_all_labels(cached, tmp_path):
    pair = made(**HEADS["several at once"])
    toxic = scorer_of(pair)
    insulting = toxic.for_label("insult")
    alone = scorer_of(pair, toxic_label="insult")
    assert (insulting.revision, insulting.languages) == (alone.revision, alone.languages)
    assert (toxic.name, insulting.name) == (alone.name, f"{alone.name}, insult")
    assert toxic.revision == scorer_of(pair).revision
    read = []
    toxic._model.register_forward_hook(lambda _, __, output: read.append(len(output.logits)))
    both = [toxic, insulting]
    if cached:
        both = [Cached(scorer, path=tmp_path / "scores.sqlite", progress=False) for scorer in both]
    found = agreement(both, TEXTS[:5], CODES[:5])
    assert sum(read) == 5
    assert [pair.n for pair in found.pairs] == [3, 1, 1]
    scores = insulting.score(TEXTS, CODES)
    assert sum(read) == len(TEXTS), "texts that are known, and others that are not"
    np.testing.assert_allclose(scores, alone.score(TEXTS, CODES), atol=1e-6)
    np.testing.assert_allclose(toxic.score(TEXTS, CODES), scorer_of(pair).score(TEXTS, CODES), atol=1e-6)
    assert sum(read) == len(TEXTS)
    with pytest.raises(ValueError, match="there is no label 'threat'"):
        toxic.for_label("threat")


def test_answers_are_kept_for_the_last_texts_only(monkeypatch):
    monkeypatch.setattr(classifier, "_KEPT", 3)
    toxic = scorer_of(made(**HEADS["several at once"]))
    toxic.score(TEXTS, CODES)
    assert toxic._read is None, "nobody else needs them"
    other = toxic.for_label("insult")
    first = toxic.score(TEXTS, CODES)
    assert len(other._read) == 3
    np.testing.assert_allclose(other.for_label("toxicity").score(TEXTS, CODES), first, atol=1e-6)
