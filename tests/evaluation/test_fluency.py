import copy
import math

import numpy as np
import pytest
import raw
import torch
import transformers
from conftest import randomised, tiny
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from xlingtox.data import Prompt
from xlingtox.evaluation.copying import copying_score
from xlingtox.evaluation.fluency import Fluency, conditional_perplexity, perplexities
from xlingtox.evaluation.text_losses import nats
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM

HELD_OUT = Dataset.from_dict(
    {
        "language": ["ru", "en", "en", "es", "en"],
        "text": ["кот сидит на коврике", "the cat sat", "the house and the mat ran away", "la casa es grande", "x"],
    }
)
WRITTEN = Continuations(
    (Prompt("es", "la casa"), Prompt("en", "the cat"), Prompt("en", "the ca"), Prompt("en", "t")),
    3,
    (
        *(" es grande", "", " y el gato duerme en la cama"),
        *(" sat", " ran away from", " \n"),
        *("t sat", "t", "!"),
        *("he", "he dog", " "),
    ),
)


def marked(tokenizer, template):
    """The tokenizer, putting special tokens around every text."""
    other = copy.deepcopy(tokenizer)
    other._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<eos>", 0)])
    return other


def rows_of(continuations):
    return [(continuations.prompts[i // continuations.n_samples], text) for i, text in enumerate(continuations.texts)]


def expect(found, expected, codes):
    for value, wanted in zip(found.values, expected, strict=True):
        assert math.isnan(value) if wanted is None else value == pytest.approx(wanted, rel=1e-4)
    for code in set(codes):
        own = [value for value, other in zip(expected, codes, strict=True) if other == code and value is not None]
        assert found.medians[code] == pytest.approx(np.median(own), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_only_the_continuation_counts(family, tokenizer, batch_size):
    expected = [
        raw.conditional_perplexity(family.model, tokenizer, prompt.text, text) for prompt, text in rows_of(WRITTEN)
    ]
    found = conditional_perplexity(family.lm, WRITTEN, batch_size=batch_size, progress=False)
    expect(found, expected, WRITTEN.row_languages)
    assert list(found.medians) == ["en", "es"]
    assert found.mean == pytest.approx((found.medians["en"] + found.medians["es"]) / 2)
    # "at" and "the" are tokens: "the ca" + "t" is read as "the" " c" "at", and nothing precedes "t" + "he".
    none = {"too_long": 0, "out_of_range": 0}
    assert found.counts["en"] == {"texts": 9, "blank": 3, "merged": 3} | none
    assert found.counts["es"] == {"texts": 3, "blank": 1, "merged": 0} | none
    assert found.judge == family.lm.name


def test_the_prompt_is_read_but_its_own_likelihood_does_not_count(model, lm, tokenizer):
    """From the definition: perplexity of the whole, less that of the prompt."""
    prompt, text = "the dog ran", " away from the house"
    ids = [tokenizer(part, return_tensors="pt")["input_ids"] for part in (prompt, prompt + text)]
    with torch.no_grad():
        total = [float(model(row, labels=row).loss) * (row.shape[1] - 1) for row in ids]
    own = Continuations((Prompt("en", prompt),), 1, (text,))
    expected = math.exp((total[1] - total[0]) / (ids[1].shape[1] - ids[0].shape[1]))
    assert conditional_perplexity(lm, own, progress=False).mean == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("template", ["<eos> $A", "$A <eos>", "<eos> $A <eos>"])
def test_tokens_around_a_text_are_read_where_they_come_first_and_never_counted(model, tokenizer, template):
    judge = HookedLM.load(model, tokenizer=marked(tokenizer, template))
    first = [0] if template.startswith("<eos>") else []
    own = Continuations((Prompt("en", "the cat"),), 1, (" sat on",))
    ids = first + tokenizer("the cat sat on")["input_ids"]
    begin = len(first) + len(tokenizer("the cat")["input_ids"])
    chances = raw.forward(model, torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = math.exp(-np.mean([float(chances[i - 1, ids[i]]) for i in range(begin, len(ids))]))
    found = conditional_perplexity(judge, own, progress=False)
    assert found.values == pytest.approx([expected], rel=1e-4)
    assert found.counts["en"]["merged"] == 0


def test_the_judge_is_told_each_rows_language(lm, monkeypatch):
    """Edits may differ by language."""
    told, logits = [], lm.logits

    def listening(ids, mask, *, languages, last, **_):
        told.extend(languages)
        return logits(ids, mask, last=last)

    monkeypatch.setattr(lm, "logits", listening)
    conditional_perplexity(lm, WRITTEN, progress=False)
    assert sorted(told) == ["en"] * 6 + ["es"] * 2
    told.clear()
    perplexities(lm, HELD_OUT, progress=False)
    assert sorted(told) == ["en", "en", "es", "ru"]


def test_values_by_hand_and_what_is_out_of_range_counts_in_the_median(two_word_model):
    _, judge = two_word_model(
        torch.tensor([[0.0, math.log(3), -80, -80, -80, -80], [0.0, -math.log(1e5), -99, -99, -99, -99]])
    )
    own = Continuations((Prompt("en", "w0"),), 4, (" w1", " w0", " w1 w1", "  "))
    found = conditional_perplexity(judge, own, progress=False)
    rare = 1e5 + 1
    expected = [4 / 3, 4, math.sqrt(4 / 3 * rare), math.nan]
    assert found.values == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert found.medians["en"] == pytest.approx(4, rel=1e-3)
    assert found.counts["en"] == {"texts": 4, "blank": 1, "too_long": 0, "out_of_range": 0, "merged": 0}
    again = Continuations((Prompt("en", "w1"),), 3, (" w1", " w1", " w0"))
    found = conditional_perplexity(judge, again, progress=False)
    assert found.medians["en"] == pytest.approx(rare, rel=1e-3)
    assert found.counts["en"]["out_of_range"] == 2


def test_texts_beyond_the_context_are_counted_and_spare_the_others(model, lm, tokenizer):
    own = Continuations((Prompt("en", "the cat"), Prompt("ru", "кот")), 2, (" sat" * 80, " sat", " x" * 99, " и" * 99))
    found = conditional_perplexity(lm, own, progress=False)
    assert found.values[1] == pytest.approx(raw.conditional_perplexity(model, tokenizer, "the cat", " sat"), rel=1e-4)
    assert np.isnan(found.values[[0, 2, 3]]).all()
    assert [found.counts[code]["too_long"] for code in ("en", "ru")] == [1, 2]
    assert math.isnan(found.medians["ru"])
    assert math.isnan(found.mean), "a language without a value is not passed over"
    frame = found.to_frame()
    assert list(frame.columns) == ["language", "median", "texts", "blank", "too_long", "out_of_range", "merged"]
    assert frame["too_long"].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nats_of_a_large_vocabulary_equal_a_float64_loop(dtype):
    """In float32 the mean of these is off by 4e-4."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 3, 256_000, generator=generator)).to(dtype)
    tokens = torch.randint(256_000, (2, 3), generator=generator)
    found = nats(logits, tokens)
    assert found.dtype == torch.float64
    for row, ids, own in zip(logits, tokens, found, strict=True):
        for values, token, value in zip(row.double().numpy(), ids.tolist(), own.tolist(), strict=True):
            assert value == pytest.approx(np.log(np.exp(values).sum()) - values[token], abs=1e-7)


def test_languages_are_made_as_often_for_many_texts_as_for_few(lm, monkeypatch):
    """Made once for each text, they took hours for the texts of a whole study."""
    of_rows, made = Continuations.row_languages.fget, []
    monkeypatch.setattr(
        Continuations, "row_languages", property(lambda written: made.append(len(written)) or of_rows(written))
    )
    for n in (2, 20):
        conditional_perplexity(lm, Continuations((Prompt("en", "the cat"),), n, (" sat",) * n), progress=False)
    assert made.count(20) == made.count(2)


def test_there_must_be_something_to_judge(lm):
    with pytest.raises(ValueError, match="no continuations"):
        conditional_perplexity(lm, Continuations((), 1, ()))


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_any_text_has_a_value_or_is_counted(lm, prompt, text):
    found = conditional_perplexity(lm, Continuations((Prompt("en", prompt),), 1, (text,)), progress=False)
    counts = found.counts["en"]
    assert math.isnan(found.values[0]) == bool(counts["blank"] + counts["too_long"])


def test_a_hundred_thousand_characters(lm):
    own = Continuations((Prompt("en", "the cat"),), 2, ("a\x00" * 50_000, "\ud800" * 100_000))
    assert conditional_perplexity(lm, own, progress=False).counts["en"]["too_long"] == 2


# --- the paper's figure


@pytest.fixture(scope="module")
def copier():
    config = transformers.MT5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=1, pad_token_id=1
    )
    return randomised(transformers.MT5ForConditionalGeneration(config))


@torch.no_grad()
def raw_copying(model, tokenizer, prompt, text):
    """Step by step as the authors' code goes: one text at a time, Hugging Face's own loss."""
    loss, length = [], []
    for part in (prompt + text, prompt):
        ids = torch.tensor([tokenizer(part)["input_ids"]])
        loss.append(model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1))
        length.append(ids.shape[1])
    return float(((loss[0] - loss[1]) / (length[0] - length[1])).exp())


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_copying_score_is_the_authors(copier, tokenizer, batch_size):
    ending = marked(tokenizer, "$A <eos>")
    found = copying_score(copier, ending, WRITTEN, batch_size=batch_size, progress=False)
    kept = {"en": [], "es": []}
    for (prompt, text), value in zip(rows_of(WRITTEN), found.values, strict=True):
        if not text.strip():
            assert math.isnan(value)
            continue
        expected = raw_copying(copier, ending, prompt.text, text)
        assert value == pytest.approx(expected, rel=1e-3)
        if expected < 1e4:
            kept[prompt.language].append(expected)
    assert found.medians == {code: pytest.approx(np.median(own), rel=1e-3) for code, own in kept.items()}
    # With as many tokens as its prompt ("the ca" + "t", "t" + "he") a text has a score of 0 or none at all.
    assert np.isin(found.values[[7, 9]], [0, np.inf]).all()
    assert found.counts == {
        "en": {"texts": 9, "blank": 2, "out_of_range": 7 - len(kept["en"])},
        "es": {"texts": 3, "blank": 1, "out_of_range": 2 - len(kept["es"])},
    }
    assert 2 <= len(kept["en"]) < 7


def test_the_copying_score_needs_an_encoder_decoder_at_rest(copier, model, tokenizer):
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not an encoder-decoder"):
        copying_score(model, tokenizer, WRITTEN)
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        copying_score(copy.deepcopy(copier).train(), tokenizer, WRITTEN)
    with pytest.raises(ValueError, match="no continuations"):
        copying_score(copier, tokenizer, Continuations((), 1, ()))


# --- held-out text


@torch.no_grad()
def raw_perplexity(model, tokenizer, texts):
    """From Hugging Face's own loss of each text alone."""
    total = count = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions]
        if ids.shape[1] > 1:
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return math.exp(total / count)


def texts_in(code):
    return [row["text"] for row in HELD_OUT if row["language"] == code]


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_perplexity_equals_the_raw_models(model, lm, tokenizer, batch_size):
    found = perplexities(lm, HELD_OUT, progress=False, batch_size=batch_size)
    assert list(found) == ["en", "es", "ru"]
    for code, value in found.items():
        assert value == pytest.approx(raw_perplexity(model, tokenizer, texts_in(code)), rel=1e-4)


@pytest.mark.parametrize("family_name", ["bloom", "llama"])
def test_perplexity_in_other_families(tokenizer, family_name):
    model = tiny(family_name)
    model.config.n_positions = 64
    lm = HookedLM.load(model, tokenizer=tokenizer)
    for code, value in perplexities(lm, HELD_OUT, progress=False).items():
        assert value == pytest.approx(raw_perplexity(model, tokenizer, texts_in(code)), rel=1e-4)


def test_a_text_longer_than_the_context_is_cut_and_spares_its_neighbours(model, lm, tokenizer):
    table = Dataset.from_dict({"language": ["en", "es"], "text": ["the dog ran away " * 60, "la casa es grande"]})
    found = perplexities(lm, table, progress=False)
    for row in table:
        assert found[row["language"]] == pytest.approx(raw_perplexity(model, tokenizer, [row["text"]]), rel=1e-4)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"text": ["a"]}, "no column language"),
        ({"language": [], "text": []}, "no held-out texts"),
        ({"language": ["en", "en"], "text": ["a b", None]}, "held-out text 1 is missing"),
        ({"language": ["en", "es"], "text": ["the cat", "x"]}, "no held-out text in es has two tokens"),
    ],
)
def test_bad_held_out_texts(lm, table, words):
    with pytest.raises(ValueError, match=words):
        perplexities(lm, Dataset.from_dict(table), progress=False)


def test_saved_and_loaded_is_equal_also_without_a_value_or_out_of_range(tmp_path):
    medians = {"en": math.inf, "ru": math.nan}
    counts = {code: {"texts": 2, "blank": 1} for code in medians}
    fluency = Fluency("judge", np.array([7.25, math.inf, math.nan, 1 / 3]), medians, counts)
    fluency.save(tmp_path / "fluency.json")
    assert Fluency.load(tmp_path / "fluency.json") == fluency
    assert fluency != Fluency("judge", np.array([7.25, 0.0, math.nan, 1 / 3]), medians, counts)
    assert fluency != "fluency"
    assert repr(fluency) == "Fluency(4 texts judged by judge: medians en inf, ru nan)"
