import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from xlingtox.data import Prompt, as_prompts, check_pairs, labelled_texts, parallel_columns


@pytest.mark.parametrize(
    "prompts",
    [
        {"es": ["hola", "gato"], "en": ["cat"]},
        Dataset.from_dict({"language": ["es", "es", "en"], "prompt": ["hola", "gato", "cat"], "id": [1, 2, 3]}),
    ],
    ids=["dict", "dataset"],
)
def test_prompts_keep_their_order_and_language(prompts):
    assert as_prompts(prompts) == [Prompt("es", "hola"), Prompt("es", "gato"), Prompt("en", "cat")]


def test_a_plain_list_is_english():
    assert as_prompts(["cat", "a dog "]) == [("en", "cat"), ("en", "a dog ")]


def test_what_no_tokenizer_takes_is_replaced():
    assert as_prompts({"en": ["a\ud83d", "\ud83d\ude00", "\x00", "x" * 100_000]}) == [
        ("en", "a\ufffd"),
        ("en", "\U0001f600"),
        ("en", "\x00"),
        ("en", "x" * 100_000),
    ]


@settings(deadline=None)
@given(st.text(st.characters()))
def test_any_text_is_a_prompt_or_blank(text):
    if text.strip():
        ((_, stored),) = as_prompts([text])
        assert len(stored.encode()) >= len(stored) > 0
    else:
        with pytest.raises(ValueError, match="prompt 0 is blank"):
            as_prompts([text])


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "no prompts"),
        ({}, "no prompts"),
        ({"en": []}, "no prompts"),
        ({"xx": ["cat"]}, "unknown language 'xx'"),
        (["cat", ""], "prompt 1 is blank"),
        ([" \n\t"], "prompt 0 is blank"),
        (Dataset.from_dict({"text": ["cat"]}), "no column prompt: they have text"),
        (Dataset.from_dict({"language": ["en"], "prompt": [None]}), "prompt 0 is blank"),
    ],
)
def test_bad_prompts(prompts, words):
    with pytest.raises(ValueError, match=words):
        as_prompts(prompts)


def labelled(labels, texts=None):
    return Dataset.from_dict({"text": texts or [f"text {i}" for i in range(len(labels))], "label": labels})


@pytest.mark.parametrize("labels", [[0, 1, 1], [False, True, True], [0.0, 1.0, 1.0]])
def test_labels_are_zero_or_one(labels):
    assert labelled_texts(labelled(labels)) == (["text 0", "text 1", "text 2"], [0, 1, 1])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (labelled([1, 1]), "both classes"),
        (labelled([0, 0]), "both classes"),
        (labelled([]), "both classes"),
        (labelled([0, 1, 2]), "must be 0 or 1"),
        (labelled([0.4, 1.0]), "must be 0 or 1"),
        (labelled([0.0, 1.0, 0.9]), "must be 0 or 1"),
        (labelled([0, 1, None]), "label"),
        (labelled([0, 1], ["fine", "  "]), "sentence 1 is blank"),
        (Dataset.from_dict({"text": ["a"]}), "no column label"),
    ],
)
def test_bad_labels(table, words):
    with pytest.raises(ValueError, match=words):
        labelled_texts(table)


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def test_pairs_are_reduced_to_their_columns():
    pairs = Dataset.from_list([GOOD | {"id": 1, "score": 0.5}])
    assert check_pairs(pairs).to_list() == [GOOD]
    assert pairs.column_names == ["prompt", "chosen", "rejected", "id", "score"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "chosen": "b"}], "no column rejected"),
        ([GOOD, GOOD | {"chosen": None}], r"1 of 2 have no chosen \(rows 1\)"),
        ([GOOD | {"prompt": " ", "rejected": ""}], r"1 of 1 have no prompt \(rows 0\); 1 of 1 have no rejected"),
        ([GOOD | {"chosen": "c"}], "1 of 1 have chosen equal to rejected"),
        ([GOOD | {"chosen": " c\n"}], "1 of 1 have chosen equal to rejected"),
        ([GOOD | {"chosen": "c"}] * 5, r"5 of 5 have chosen equal to rejected \(rows 0, 1, 2, ...\)"),
    ],
)
def test_bad_pairs(rows, words):
    with pytest.raises(ValueError, match=words):
        check_pairs(Dataset.from_list(rows))


def test_no_pairs():
    with pytest.raises(ValueError, match="no preference pairs"):
        check_pairs(Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}))


def test_parallel_columns_are_in_the_houses_order():
    table = parallel_columns(Dataset.from_dict({"de": ["Hund", "Katze"], "en": ["dog", "cat"]}), pivot="en")
    assert list(table.items()) == [("en", ["dog", "cat"]), ("de", ["Hund", "Katze"])]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"de": ["a", "b"], "fr": ["c", "d"]}, "no column for the pivot 'en'"),
        ({"en": ["a", "b"]}, "two languages and two rows: got 1 and 2"),
        ({"en": ["a"], "de": ["b"]}, "two languages and two rows: got 2 and 1"),
        ({"en": ["a", "b"], "de": ["c", ""]}, "sentence 1 in de is blank"),
        ({"en": ["a", "b"], "xx": ["c", "d"]}, "unknown language 'xx'"),
    ],
)
def test_bad_parallel_sentences(columns, words):
    with pytest.raises(ValueError, match=words):
        parallel_columns(Dataset.from_dict(columns), pivot="en")
