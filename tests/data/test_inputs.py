"""Inputs as people bring them: tokenizers that add an end or a beginning, and prompts, pairs and texts in any table."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import raw
import torch
import transformers
import trl
from datasets import Dataset
from families import randomised
from tokenizers import processors
from torch.testing import assert_close
from toys import HashScorer

from xlingtox.data import Prompt, as_prompts, check_pairs, labelled_texts
from xlingtox.evaluation.compare_models import compare
from xlingtox.evaluation.fluency import conditional_perplexity, perplexities
from xlingtox.evaluation.patching import patch_effect
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.tokenizer import added_start, token_ids
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.localize import by_auroc
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.neurons.token_activations import read_tokens
from xlingtox.scoring import ProbeScorer
from xlingtox.transfer import retrieval
from xlingtox.tuning.dpo import MINI, tune_dpo
from xlingtox.tuning.preference_pairs import tunable_pairs

TEXTS = ["the cat sat", "la casa es grande y el gato", "кот"]
NEURONS = NeuronSet.of([(0, 3), (1, 5), (1, 0)])
LABELLED = Dataset.from_dict({"text": [f"the cat {i} ran" for i in range(12)], "label": [0, 1] * 6})
HELD_OUT = Dataset.from_dict({"language": ["en", "es"], "text": ["the dog ran away", "la casa es"]})
PAIRS = Dataset.from_list([{"prompt": f"the cat {i}", "chosen": " sat", "rejected": " ran away"} for i in range(4)])


def ruled(tokenizer, start="", end=""):
    """Return a copy of the tokenizer that puts tokens around each text, as its own files would demand."""
    copied = copy.deepcopy(tokenizer)
    if start:
        copied.add_special_tokens({"bos_token": start})
    named = [(token, copied.convert_tokens_to_ids(token)) for token in dict.fromkeys([start, end]) if token]
    single = " ".join(filter(None, [start, "$A", end]))
    copied.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
    return copied


@pytest.fixture(scope="module", params=["gpt2", "llama with a beginning"])
def both(request, model, tokenizer):
    """A model under a tokenizer that ends no text, and under one that ends each."""
    start = "" if request.param == "gpt2" else "<s>"
    if start:
        size = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {"vocab_size": 301, "bos_token_id": 300, "eos_token_id": 0, "pad_token_id": 1}
        model = randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **ids)))
    tokenizers = [ruled(tokenizer, start, end) for end in ("", "<eos>")]
    assert [reader("the cat")["input_ids"][-1] == 0 for reader in tokenizers] == [False, True]
    return model, tuple(HookedLM.load(model, tokenizer=reader) for reader in tokenizers)


def same(call, both):
    ours, ended = (torch.as_tensor(call(lm)) for lm in both[1])
    assert ours.isfinite().any()
    assert_close(ended, ours, rtol=0, atol=0, equal_nan=True)


def test_no_end_stands_in_what_is_read(both, tokenizer):
    model, lms = both
    start = [] if model.config.model_type == "gpt2" else [300]
    for lm in lms:
        ids, mask = lm.encode(TEXTS)
        for row, text in enumerate(TEXTS):
            assert ids[row, mask[row]].tolist() == start + tokenizer(text)["input_ids"]


def test_what_is_written_goes_on_from_the_prompt(both, tokenizer):
    model, lms = both
    start = [] if model.config.model_type == "gpt2" else [300]
    news = [raw.greedy(model, start + tokenizer(text)["input_ids"], 8, 0)[0] for text in TEXTS]
    theirs = [tokenizer.decode(new, skip_special_tokens=True) for new in news]
    assert len(set(theirs)) == len(theirs)
    for lm in lms:
        assert list(generate(lm, TEXTS, max_new_tokens=8, greedy=True, progress=False).texts) == theirs


def test_every_result_is_that_of_the_tokenizer_without_an_end(both):
    writings = [generate(lm, TEXTS, n_samples=3, max_new_tokens=6, seed=2, progress=False) for lm in both[1]]
    assert writings[0].texts == writings[1].texts
    same(lambda lm: collect_activations(lm, TEXTS, NEURONS, max_new_tokens=5, progress=False).values, both)
    same(lambda lm: Probe.fit(lm, LABELLED, held_out_share=0.25, progress=False).direction, both)
    same(lambda lm: list(by_auroc(lm, LABELLED, progress=False).scores), both)
    parallel = {"en": ["the cat", "the dog ran", "a house"], "es": ["el gato", "la casa", "es grande y"]}
    same(lambda lm: retrieval.bilingual_retrieval(lm, parallel, progress=False).scores["es"], both)
    same(lambda lm: conditional_perplexity(lm, writings[0], progress=False).values, both)
    same(lambda lm: list(perplexities(lm, HELD_OUT, progress=False).values()), both)
    pieces = [
        [(reading.pieces, reading.n_prompt) for reading in read_tokens(lm, TEXTS, NEURONS, max_new_tokens=4)]
        for lm in both[1]
    ]
    assert pieces[0] == pieces[1]
    assert all(len(text) > 1 for text, _ in pieces[0])


def test_judges_read_no_end_either(both):
    probe = Probe.fit(both[1][0], LABELLED, held_out_share=0.25, progress=False)
    texts = ["the cat", "", "la casa"]
    same(lambda lm: ProbeScorer(lm, probe, languages=["en"], progress=False).score(texts, ["en"] * 3), both)


def test_models_are_patched_and_compared_on_texts_without_an_end(both):
    model, (plain, ended) = both
    torch.manual_seed(1)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    plain_other, ended_other = (HookedLM.load(changed, tokenizer=lm.tokenizer) for lm in (plain, ended))
    sizes = {"n_samples": 2, "max_new_tokens": 4, "progress": False}
    effects = [
        patch_effect(*lms, TEXTS, {"few": NEURONS}, toxic_tokens=[5, 9], n_random=1, **sizes).to_frame()
        for lms in ((plain, plain_other), (ended, ended_other))
    ]
    pd.testing.assert_frame_equal(*effects)
    sides = [
        compare(*lms, TEXTS, neurons=NEURONS, scorer=HashScorer("en"), held_out=HELD_OUT.select([0]), **sizes)
        for lms in ((plain, plain_other), (ended, ended_other), (plain, ended_other))
    ]
    frames = [side.to_frame() for side in sides]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    pd.testing.assert_frame_equal(frames[0], frames[2])


def test_a_text_that_begins_with_the_beginning_gets_no_second_one(tokenizer):
    starting = ruled(tokenizer, "<s>", "<eos>")
    plain = tokenizer("the cat")["input_ids"]
    assert starting("<s>the cat")["input_ids"] == [300, 300, *plain, 0]
    assert token_ids(starting, ["<s>the cat", "the cat", "<s>", ""]) == [[300, *plain], [300, *plain], [300], [300]]
    assert token_ids(tokenizer, ["the cat", ""]) == [plain, []]
    assert token_ids(starting, []) == []


def test_an_end_that_stands_in_the_text_is_read_as_it_stands(tokenizer):
    plain = tokenizer("the cat")["input_ids"]
    for reader, start in ((tokenizer, []), (ruled(tokenizer, "<s>", "<eos>"), [300])):
        assert token_ids(reader, ["the cat<eos>", "<eos>the cat"]) == [[*start, *plain, 0], [*start, 0, *plain]]


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer"])
def test_tokenizers_of_sentence_pieces(kind):
    """Those that are told by `add_bos_token` and `add_eos_token` what to add."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if kind == "GemmaTokenizer" else ["<unk>", "<s>", "</s>"]
    pieces = [*special, "▁", "t", "h", "e", "c", "a", "th", "▁the", "the", "▁c", "at", "▁cat"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    made = getattr(transformers, kind)(vocab=vocabulary, merges=merges, add_bos_token=True, add_eos_token=True)
    begin, end = made.bos_token_id, made.eos_token_id
    words = [vocabulary["▁the" if kind == "LlamaTokenizer" else "the"], vocabulary["▁cat"]]
    assert made("the cat")["input_ids"] == [begin, *words, end]
    assert added_start(made) == [begin]
    assert token_ids(made, ["the cat", f"{made.bos_token}the cat"])[0] == [begin, *words]
    assert [ids.count(begin) for ids in token_ids(made, ["the cat", f"{made.bos_token}the cat"])] == [1, 1]
    made.add_bos_token = False
    assert token_ids(made, ["the cat"]) == [words]


# --- tuning


RECIPE = replace(MINI, steps=1, batch_size=4, end_token=True)


def collated(monkeypatch):
    """The rows that TRL's collator gets."""
    rows, real = [], trl.trainer.dpo_trainer.DataCollatorForPreference.torch_call

    def kept(self, examples):
        rows.extend(tuple(tuple(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")) for row in examples)
        return real(self, examples)

    monkeypatch.setattr(trl.trainer.dpo_trainer.DataCollatorForPreference, "torch_call", kept)
    return rows


def test_what_is_tuned_on_has_one_beginning_and_one_end(both, tokenizer, tmp_path, monkeypatch):
    model, lms = both
    literals, starts = ([""], []) if model.config.model_type == "gpt2" else (["", "<s>"], [300])

    def ids(text):
        return tokenizer(text)["input_ids"]

    expected = {(*starts, *ids(row["prompt"])): ((*ids(" sat"), 0), (*ids(" ran away"), 0)) for row in PAIRS}
    rows = collated(monkeypatch)
    for name, lm in zip(("plain", "ended"), lms, strict=True):
        for literal in literals:
            rows_with_literal = [row | {"prompt": literal + row["prompt"]} for row in PAIRS]
            tune_dpo(
                lm, rows_with_literal, output_dir=tmp_path / f"{name}{len(literal)}", recipe=RECIPE, progress=False
            )
            assert {prompt: tuple(sides) for prompt, *sides in rows} == expected
            rows.clear()


def test_a_plain_tokenizer_tunes_on_what_trl_itself_would(lm, tokenizer):
    merging = Dataset.from_list([{"prompt": "t", "chosen": "he cat", "rejected": "he dog<eos>"}, *PAIRS])
    ours = tunable_pairs(lm, merging, recipe=RECIPE).tokenized("train", lm)
    trainer = type("Trainer", (), {"_tokenizer": tokenizer, "dataset_num_proc": None, "max_length": None})()
    theirs = trl.DPOTrainer._prepare_dataset(
        trainer, tunable_pairs(lm, merging, recipe=RECIPE).train, tokenizer, trainer, "train"
    )
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()
    assert tunable_pairs(lm, merging, recipe=RECIPE).merged == (0,)


# --- tables


ROWS = [{"language": "es", "prompt": "hola", "id": 1}, {"language": "en", "prompt": "cat", "id": 2}]
TABLES = {
    "frame": pd.DataFrame(ROWS, index=[7, 7]),
    "dataset": Dataset.from_list(ROWS),
    "dicts": ROWS,
    "arrow": pa.Table.from_pylist(ROWS),
}


class Polarised:
    """A frame as polars has it: names of columns, and columns with `to_list`."""

    def __init__(self, frame):
        self.frame, self.columns = frame, list(frame.columns)

    def __getitem__(self, name):
        return self.frame[name].astype("string[pyarrow]")


@pytest.mark.parametrize("table", [*TABLES.values(), Polarised(TABLES["frame"])], ids=[*TABLES, "as polars"])
def test_prompts_in_a_table(table):
    assert as_prompts(table) == [Prompt("es", "hola"), Prompt("en", "cat")]
    assert all(type(text) is str for prompt in as_prompts(table) for text in prompt)


@pytest.mark.parametrize(
    "prompts",
    [
        pd.DataFrame({"prompt": ["cat", "dog"]}),
        Dataset.from_dict({"prompt": ["cat", "dog"], "id": [1, 2]}),
        [{"prompt": "cat"}, {"prompt": "dog"}],
        pd.Series(["cat", "dog"], index=["a", "b"]),
        pd.Series(["cat", "dog"], dtype="string"),
        np.array(["cat", "dog"]),
        ("cat", "dog"),
        {"en": pd.Series(["cat", "dog"])},
        [Prompt("en", "cat"), "dog"],
    ],
    ids=["frame", "dataset", "dicts", "series", "strings", "array", "tuple", "series by language", "mixed"],
)
def test_prompts_without_a_language_are_english(prompts):
    assert as_prompts(prompts) == [Prompt("en", "cat"), Prompt("en", "dog")]


def test_a_list_of_prompts_passes_through_unchanged():
    prompts = [Prompt("es", "hola "), Prompt("en", "cat"), Prompt("es", "hola ")]
    assert as_prompts(prompts) == as_prompts(tuple(prompts)) == as_prompts(as_prompts(prompts)) == prompts
    assert all(type(prompt) is Prompt for prompt in as_prompts(prompts))
    with pytest.raises(ValueError, match="prompt 1 is blank"):
        as_prompts([prompts[0], Prompt("en", " ")])
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        as_prompts([Prompt("xx", "hola")])


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (pd.DataFrame({"text": ["cat"], "label": [1]}), "prompts have no column prompt: they have text, label"),
        (pd.DataFrame({0: ["cat"]}), "prompts have no column prompt: they have 0"),
        ([{"text": "cat"}], "prompts have no column prompt: they have text"),
        (pd.DataFrame({"lang": ["es"], "prompt": ["hola"]}), "a column 'lang' and none called 'language': rename it"),
        ([{"prompt": "hola", "Locale": "ES"}], "a column 'Locale' and none called 'language'"),
        (pd.DataFrame({"prompt": ["cat", None]}), "prompt 1 is blank"),
        (pd.Series(["cat", float("nan")]), "prompt 1 is blank: expected text, got nan"),
        (pd.Series([], dtype=object), "no prompts"),
        (pd.DataFrame({"prompt": []}), "no prompts"),
        ([{"prompt": "a"}, {"language": "es", "prompt": "b"}], "unknown language None"),
    ],
)
def test_tables_that_hold_no_prompts(prompts, words):
    with pytest.raises(ValueError, match=words):
        as_prompts(prompts)


@pytest.mark.parametrize(
    ("call", "wrong", "words"),
    [
        (as_prompts, [("es", "hola")], "prompts[0] is ('es', 'hola') (a tuple), expected a list of strings, a dict"),
        (as_prompts, [["cat"]], "prompts[0] is ['cat'] (a list), expected a list of strings, a dict"),
        (as_prompts, [None], "prompts[0] is None, expected a list of strings, a dict"),
        (labelled_texts, pd.Series(["a"]), "labelled is a Series, expected a table with the columns text, label"),
        (
            labelled_texts,
            [("a", 1)],
            "labelled[0] is ('a', 1) (a tuple), expected a table with the columns text, label",
        ),
        (
            check_pairs,
            pd.Series(["a"]),
            "pairs is a Series, expected a table with the columns prompt, chosen, rejected",
        ),
    ],
)
def test_what_is_neither_text_nor_table(call, wrong, words):
    with pytest.raises(TypeError) as refused:
        call(wrong)
    assert words in str(refused.value)


def test_a_frame_is_continued_as_its_prompts_are(lm):
    prompts = as_prompts(TABLES["frame"])
    for table in (*TABLES.values(), prompts):
        assert generate(lm, table, max_new_tokens=4, greedy=True, progress=False).prompts == tuple(prompts)
        assert collect_activations(lm, table, NEURONS, max_new_tokens=2, progress=False).languages == ("es", "en")


@pytest.mark.parametrize("kind", ["frame", "dicts"])
def test_labelled_sentences_and_pairs_in_a_table(lm, kind):
    labelled, pairs = (
        pd.DataFrame(table.to_list()) if kind == "frame" else table.to_list() for table in (LABELLED, PAIRS)
    )
    assert labelled_texts(labelled) == labelled_texts(LABELLED)
    fitted = [Probe.fit(lm, table, held_out_share=0.25, progress=False).direction for table in (labelled, LABELLED)]
    assert torch.equal(*fitted)
    assert by_auroc(lm, labelled, progress=False) == by_auroc(lm, LABELLED, progress=False)
    assert check_pairs(pairs).to_list() == PAIRS.to_list()
    with_more = [dict(row, score=1.0) for row in PAIRS]
    assert check_pairs(with_more).column_names == ["prompt", "chosen", "rejected"]
    tunable = tunable_pairs(lm, pairs, recipe=MINI, validation=pairs)
    assert tunable.train.to_list() == tunable.validation.to_list() == PAIRS.to_list()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: labelled_texts([{"text": "a"}]), "labelled sentences have no column label: they have text"),
        (lambda: labelled_texts([{"text": "a", "label": 1}, {"text": "b"}]), "labels must be 0 or 1, got None"),
        (lambda: check_pairs(pd.DataFrame({"prompt": ["a"]})), "no column chosen, rejected: they have prompt"),
        (lambda: check_pairs([{"prompt": "a", "chosen": "b", "rejected": "b"}]), "1 of 1 have chosen equal"),
        (lambda: check_pairs([]), "there are no preference pairs"),
    ],
)
def test_tables_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
