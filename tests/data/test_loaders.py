"""The other loaders, on small files of our own in each published format."""

import json
import re
from uuid import uuid4
from zipfile import ZipFile

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from published import BOM, jsonl, left_out, repository, table, written
from toys import value_or_refusal

from xlingtox import data
from xlingtox.scoring import WordlistScorer


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


# --- labelled sentences

TOXIC = ["id", "comment_text", "toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def test_jigsaw_as_in_2018(tmp_path):
    comments = ['"He said ""fool"",\nthen left"', '"D\'aww! \u2028"', '" "', "left, unquoted"]
    rows = [[str(i), text, str(i % 2), *"00000"] for i, text in enumerate(comments)]
    path = tmp_path / "train.csv"
    path.write_bytes(BOM + table(TOXIC, *rows) + b"\r\n")
    loaded = data.jigsaw(path)
    assert list(loaded) == [
        {"language": "en", "text": 'He said "fool",\nthen left', "label": 0},
        {"language": "en", "text": "D'aww! \u2028", "label": 1},
    ]
    assert left_out(loaded) == [("train.csv", "no text", 1, "line 5"), ("train.csv", "not 8 fields", 1, "line 6")]
    assert data.labelled_texts(loaded)[1] == [0, 1]
    with ZipFile(tmp_path / "train.csv.zip", "w") as archive:
        archive.write(path, "train.csv")
    assert list(data.jigsaw(tmp_path / "train.csv.zip")) == list(loaded)


def test_jigsaw_of_2018_with_labels_apart(tmp_path):
    test = table(["id", "comment_text"], *([f"a{i}", f"comment {i}"] for i in range(4)))
    apart = table(["id", *TOXIC[2:]], *([f"a{i}", label, *"00000"] for i, label in enumerate(["1", "-1", "0"])))
    written(tmp_path, {"test.csv": test, "test_labels.csv": apart})
    loaded = data.jigsaw(tmp_path / "test.csv", labels=tmp_path / "test_labels.csv", language="fr")
    assert [tuple(row.values()) for row in loaded] == [("fr", "comment 0", 1), ("fr", "comment 2", 0)]
    assert left_out(loaded) == [
        ("test.csv", "not scored by the competition (label -1)", 1, "line 3"),
        ("test.csv", "no label from 0 to 1", 1, "line 5"),
    ]


@pytest.mark.parametrize("column", ["toxic", "target"])
def test_jigsaw_with_fractions_of_annotators(tmp_path, column):
    labels = ["0.0", "0.4999", "0.5", "1.0", "nan", "1.2", ""]
    path = written(tmp_path, {"a.csv": table([column, "comment_text"], *([x, "a"] for x in labels))}) / "a.csv"
    assert list(data.jigsaw(path)["label"]) == [0, 0, 1, 1]
    assert set(data.jigsaw(path, language="tr")["language"]) == {"tr"}


def test_multilingual_jigsaw(tmp_path):
    rows = [["0", "hola", "es", "1"], ["1", "merhaba", "tr", "0"], ["2", "ciao", "it", "0"]]
    written(
        tmp_path,
        {
            "validation.csv": table(["id", "comment_text", "lang", "toxic"], *rows),
            "test.csv": table(["id", "content", "lang"], *(row[:3] for row in rows)),
            "labels.csv": table(["id", "toxic"], *([row[0], row[3]] for row in rows)),
        },
    )
    loaded = data.jigsaw(tmp_path / "validation.csv")
    assert [tuple(row.values()) for row in loaded] == [("es", "hola", 1), ("it", "ciao", 0)]
    assert left_out(loaded) == [("validation.csv", "language tr not asked for", 1, "line 3")]
    assert list(data.jigsaw(tmp_path / "test.csv", labels=tmp_path / "labels.csv")) == list(loaded)
    assert list(data.jigsaw(tmp_path / "validation.csv", languages=["tr"])["text"]) == ["merhaba"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table(["id", "text"], ["1", "a"]), "has no field comment_text or content, toxic or target: it has id, text"),
        (table(TOXIC), "no row could be read$"),
        (table(["comment_text", "toxic"], ['"never closed', "1"]), "line 2: the quotation marks do not pair"),
        (b"comment_text,toxic\ra,1\r", "line 1: a carriage return stands alone: convert the line ends to line feeds"),
        ("\n\n", "has no field .*: it has none"),
    ],
)
def test_not_jigsaw(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        data.jigsaw(written(tmp_path, {"train.csv": content}) / "train.csv")


# --- pairs


def test_toxicity_pairwise(tmp_path):
    def published(prompt, chosen, rejected):
        return {"prompt_text": prompt, "unpert_gen_text": chosen, "pert_gen_text": rejected, "extra": [1]}

    first = jsonl(published("He is", " kind", " a fool"), published("a", "b", " b\n"), published("a", None, ""))
    written(tmp_path, {"split_0.jsonl": first, "split_1.jsonl": jsonl(published("She", "\u2028x", "y"))})
    loaded = data.toxicity_pairwise(tmp_path)
    assert list(data.check_pairs(loaded)) == list(loaded)
    assert [tuple(row.values()) for row in loaded] == [("He is", " kind", " a fool"), ("She", "\u2028x", "y")]
    assert left_out(loaded) == [
        ("split_0.jsonl", "chosen equals rejected", 1, "line 2"),
        ("split_0.jsonl", "no chosen and no rejected", 1, "line 3"),
    ]
    assert len(data.toxicity_pairwise(tmp_path / "split_1.jsonl")) == 1
    with pytest.raises(ValueError, match="has no field prompt_text, unpert_gen_text, pert_gen_text: it has Prompt"):
        data.toxicity_pairwise(written(tmp_path, {"a.jsonl": jsonl({"Prompt": "x"})}) / "a.jsonl")


def test_published_pairs_with_nothing_to_see_are_counted_not_handed_to_tuning(tmp_path):
    sides = ((" sat", " dog"), ("\u200b", " dog"), (" cafe\u0301", " caf\xe9"))
    rows = [
        dict(zip(("prompt_text", "unpert_gen_text", "pert_gen_text"), ("the cat", *side_texts), strict=True))
        for side_texts in sides
    ]
    loaded = data.toxicity_pairwise(written(tmp_path, {"a.jsonl": jsonl(*rows)}) / "a.jsonl")
    assert data.check_pairs(loaded).to_list() == [{"prompt": "the cat", "chosen": " sat", "rejected": " dog"}]
    assert left_out(loaded) == [
        ("a.jsonl", "no chosen", 1, "line 2"),
        ("a.jsonl", "chosen equals rejected", 1, "line 3"),
    ]


def test_paradetox(tmp_path):
    rows = [
        ["toxic", "neutral1", "neutral2", "neutral3"],
        ["hE  had steel balls !", "He was brave!", "he had\u00a0courage", ""],
        ["you fool", "friend", '"you,\nfriend"', "you"],
        ["fool", "", "", ""],
    ]
    loaded = data.paradetox(written(tmp_path, {"paradetox.tsv": table(*rows, delimiter="\t")}) / "paradetox.tsv")
    assert [tuple(row.values()) for row in loaded] == [
        ("hE", " was brave!", "  had steel balls !"),
        ("hE  had", "\u00a0courage", " steel balls !"),
    ]
    assert left_out(loaded) == [
        (
            "paradetox.tsv",
            "sentence and rewrite do not begin alike, or one ends there",
            3,
            "line 4, line 4, line 4",
        ),
        ("paradetox.tsv", "no sentence, or no rewrite", 1, "line 5"),
    ]
    data.check_pairs(loaded)


def test_paradetox_as_labelled_sentences(tmp_path):
    rows = [
        ["toxic", "neutral1", "neutral2", "neutral3"],
        ["he had steel balls !", "He was brave!", "he had courage", ""],
        ["you fool", "", "friend", ""],
        ["what an idiot", "what a person", "", ""],
    ]
    path = written(tmp_path, {"paradetox.tsv": table(*rows, delimiter="\t")}) / "paradetox.tsv"
    loaded = data.paradetox_labelled(path)
    assert [tuple(row.values()) for row in loaded] == [
        ("en", "he had steel balls !", 1, 2),
        ("en", "He was brave!", 0, 2),
        ("en", "what an idiot", 1, 4),
        ("en", "what a person", 0, 4),
    ]
    assert left_out(loaded) == [("paradetox.tsv", "no sentence, or no rewrite", 1, "line 3")]
    assert data.labelled_texts(loaded)[1] == [1, 0, 1, 0]


# --- parallel sentences


def test_line_aligned(tmp_path):
    written(
        tmp_path,
        {
            "en.jsonl": jsonl(*({"Prompt": text} for text in ["one", "two\u2028", "three", " ", "five"])),
            "deu_Latn.dev": "eins\r\nzwei\n\nvier\nfünf",
            "zh.jsonl": jsonl({"Prompt": "一"}, {"Prompt": "二"}, {"Prompt": "三"}, {"Prompt": "四"}) + b"broken",
            "README": "of no language",
        },
    )
    loaded = data.line_aligned(tmp_path)
    assert loaded.column_names == ["en", "de", "zh"]
    assert data.parallel_columns(loaded, "en") == {
        "en": ["one", "two\u2028"],
        "de": ["eins", "zwei"],
        "zh": ["一", "二"],
    }
    assert left_out(loaded) == [
        (tmp_path.name, "language not known", 1, "README"),
        ("deu_Latn.dev", "no text", 1, "line 3"),
        ("en.jsonl", "no text", 1, "line 4"),
        ("zh.jsonl", "not JSON", 1, "line 5"),
    ]
    mapped = data.line_aligned({"zh": tmp_path / "zh.jsonl", "en": tmp_path / "en.jsonl"})
    assert mapped[2] == {"zh": "三", "en": "three"}
    assert data.line_aligned(tmp_path, languages=["zh", "en"]).column_names == ["zh", "en"]
    with pytest.raises(ValueError, match="has no ko: it has en, zh"):
        data.line_aligned(tmp_path, languages=["zh", "en", "ko"])
    with pytest.raises(ValueError, match=r"en.jsonl has no field text: it has Prompt"):
        data.line_aligned(tmp_path, field="text")
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        data.line_aligned({"xx": tmp_path / "en.jsonl"})
    (tmp_path / "zh.jsonl").write_bytes(jsonl({"Prompt": "一"}))
    with pytest.raises(ValueError, match=r"not aligned: zh.jsonl has 1 lines, en.jsonl has more"):
        data.line_aligned(tmp_path)


def test_line_aligned_reads_files_named_in_capitals_and_counts_lines_without_the_field(tmp_path):
    written(tmp_path, {"en.JSONL": jsonl({"Prompt": "a"}, {"other": 1}, {"Prompt": "c"}), "de.txt": "A\nB\nC\n"})
    loaded = data.line_aligned({"en": tmp_path / "en.JSONL", "de": tmp_path / "de.txt"})
    assert list(loaded) == [{"en": "a", "de": "A"}, {"en": "c", "de": "C"}]
    assert left_out(loaded) == [("en.JSONL", "no field Prompt", 1, "line 2")]
    with pytest.raises(ValueError, match=r"holds several files: give one of de.txt, en.JSONL"):
        data.line_aligned({"en": tmp_path, "de": tmp_path / "de.txt"})


def test_tatoeba(tmp_path):
    sides = {
        "deu-eng.deu": "Hund\nKatze\n",
        "deu-eng.eng": "dog\ncat\n",
        "cmn-eng.cmn": "狗\n\n",
        "cmn-eng.eng": "dog\nx\n",
    }
    written(tmp_path, {f"tatoeba.{name}": content for name, content in sides.items()})
    written(tmp_path, {"tatoeba.tur-eng.tur": "kedi\n", "tatoeba.tur-eng.eng": "cat\n"})
    loaded = data.tatoeba(tmp_path)
    assert [tuple(row.values()) for row in loaded] == [
        ("de", "Hund", "dog"),
        ("de", "Katze", "cat"),
        ("zh", "狗", "dog"),
    ]
    assert loaded.column_names == ["language", "sentence", "translation"]
    assert left_out(loaded) == [
        (tmp_path.name, "language not asked for", 1, "tatoeba.tur-eng.tur"),
        ("tatoeba.cmn-eng.cmn", "no text", 1, "line 2"),
    ]
    assert list(data.tatoeba(tmp_path, languages=["tr"])["sentence"]) == ["kedi"]
    (tmp_path / "tatoeba.deu-eng.eng").unlink()
    with pytest.raises(ValueError, match=r"tatoeba.deu-eng.deu has no file tatoeba.deu-eng.eng next to it"):
        data.tatoeba(tmp_path)


def test_flores(tmp_path):
    source = repository(
        tmp_path,
        {
            ("eng_Latn", "devtest"): [{"id": i, "text": f"s{i}"} for i in range(4)],
            ("deu_Latn", "devtest"): [{"id": i, "text": f"S{i}"} for i in (2, 1, 0)],
            ("cmn_Hans", "devtest"): [{"id": i, "text": "一"[: i + 1] * i} for i in range(4)],
            ("cmn_Hant", "devtest"): [{"id": 0, "text": "x"}],
        },
    )
    loaded = data.flores(source, languages=["en", "de", "zh"])
    assert list(loaded) == [{"en": "s1", "de": "S1", "zh": "一"}, {"en": "s2", "de": "S2", "zh": "一一"}]
    assert left_out(loaded) == [
        ("cmn_Hans", "no text", 1, "id 0"),
        (str(source), "not in zh", 1, "id 0"),
        (str(source), "not in de", 1, "id 3"),
    ]
    with pytest.raises(ValueError, match=r"has no es, fr.*: it has en, de, zh, zh-hant"):
        data.flores(source)
    with pytest.raises(ValueError, match=r"cannot read the data set .*dev"):
        data.flores(source, languages=["en"], split="dev")


def test_polyglo_toxicity_prompts(tmp_path):
    source = repository(
        tmp_path,
        {
            ("ptp-en", "small"): [{"text": "you fool", "toxicity": 0.9}, {"text": " ", "toxicity": 0.1}],
            ("ptp-en", "full"): [{"text": "full", "toxicity": 0.9}],
            ("ptp-de", "small"): [{"text": "du Narr", "toxicity": 0.9}],
            ("wildchat-en", "wildchat"): [{"prompt": "x"}],
        },
    )
    loaded = data.polyglo_toxicity_prompts(source, languages=["de", "en"])
    assert data.as_prompts(loaded) == [("de", "du Narr"), ("en", "you fool")]
    assert left_out(loaded) == [(str(source), "no prompt that can be used", 1, "row 1")]
    assert list(data.polyglo_toxicity_prompts(source, languages=["en"], split="full")["prompt"]) == ["full"]
    with pytest.raises(ValueError, match="has no es, fr"):
        data.polyglo_toxicity_prompts(source)
    with pytest.raises(ValueError, match=r"cannot find the data set .*nowhere"):
        data.polyglo_toxicity_prompts(tmp_path / "nowhere")


# --- any data set


def test_from_columns(tmp_path):
    rows = {
        "comment": ["a", "b", "", "d"],
        "tox": [1, 0, 1, 0],
        "lang": ["EN", "por_Latn", "en", "klingon"],
        "x": [1] * 4,
    }
    features = Features(
        comment=Value("string"), tox=ClassLabel(names=["no", "yes"]), lang=Value("string"), x=Value("int8")
    )
    source = Dataset.from_dict(rows, features=features)
    columns = {"text": "comment", "label": "tox", "language": "lang"}
    loaded = data.from_columns(source, columns)
    expected = [{"language": "en", "text": "a", "label": 1}, {"language": "pt", "text": "b", "label": 0}]
    assert list(loaded) == expected
    assert left_out(loaded) == [
        ("the data set", "no text that can be used", 1, "row 2"),
        ("the data set", "no language that can be used", 1, "row 3"),
    ]
    source.to_json(tmp_path / "a.jsonl")
    source.to_csv(tmp_path / "a.csv")
    source.to_parquet(tmp_path / "a.parquet")
    source.save_to_disk(tmp_path / "saved")
    DatasetDict(train=source, test=source.select([0])).save_to_disk(tmp_path / "splits")
    for name in ("a.jsonl", "a.csv", "a.parquet", "saved"):
        assert list(data.from_columns(tmp_path / name, columns)) == expected
    assert list(data.from_columns(tmp_path / "splits", columns, split="test")) == expected[:1]
    with pytest.raises(ValueError, match="no split None: give split=, one of train, test"):
        data.from_columns(tmp_path / "splits", columns)
    fixed = data.from_columns(source, {"text": "comment"}, language="de")
    assert data.skipped(fixed)["count"].sum() == 1
    assert [tuple(row.values()) for row in fixed] == [("de", "a"), ("de", "b"), ("de", "d")]
    parallel = data.from_columns(source, {"de": "comment", "en": "lang"})
    assert data.parallel_columns(parallel, "en") == {"en": ["EN", "por_Latn", "klingon"], "de": ["a", "b", "d"]}


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"text": "other"}, {}, "the data set have no column other: they have comment"),
        ({"comment": "comment"}, {}, "cannot fill column 'comment': expected some of language, prompt, text"),
        ({}, {}, "cannot fill column"),
        ({"text": "comment", "language": "comment"}, {"language": "en"}, "give one of the two"),
        ({"text": "comment"}, {"language": "xx"}, "unknown language 'xx'"),
        ({"label": "comment"}, {}, "no row could be read: the data set: no label"),
    ],
)
def test_wrong_columns(columns, options, words):
    with pytest.raises(ValueError, match=words):
        data.from_columns(Dataset.from_dict({"comment": ["a"]}), columns, **options)


@pytest.mark.parametrize("name", ["no/such-data-set", "a.txt", "a.parquet"])
def test_a_data_set_that_cannot_be_read(tmp_path, name):
    written(tmp_path, {"a.txt": "x", "a.parquet": "no"})
    source = name if "/" in name else tmp_path / name
    with pytest.raises(ValueError, match=f"cannot read the data set .*{re.escape(name)}: [^\n]+$"):
        data.from_columns(source, {"text": "text"}, language="en")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "A.JSONL", "a.json"])
@pytest.mark.parametrize("text", ["NA", "null", "None", "nan", "12", "1e5", "True", "half \ud83d an emoji", "a\u2028b"])
def test_from_columns_takes_text_as_it_is(tmp_path, name, text):
    """Words and numbers too: where the datasets library would guess at types."""
    if name.lower().endswith(("l", "n")):
        written(tmp_path, {name: json.dumps({"t": text, "y": 1}) + "\n" + json.dumps({"t": "b", "y": 0})})
    else:
        shown, between = text.replace("\ud83d", "\ufffd"), "," if name == "a.csv" else "\t"
        written(tmp_path, {name: table(["t", "y"], [shown, "1"], ["b", "0"], delimiter=between)})
    loaded = data.from_columns(tmp_path / name, {"text": "t", "label": "y"}, language="en")
    assert list(loaded["text"]) == [text.replace("\ud83d", "\ufffd"), "b"]
    assert list(loaded["label"]) == [1, 0]


def test_from_columns_counts_lines_that_cannot_be_used(tmp_path):
    lines = ['{"t": "a", "y": true}', "{broken", '{"t": 3, "y": "1"}', "[]", '{"y": 0}', '{"t": "b", "y": 0.5}']
    path = written(tmp_path, {"a.jsonl": "\n".join(lines)}) / "a.jsonl"
    loaded = data.from_columns(path, {"text": "t", "label": "y"}, language="en")
    assert list(loaded) == [{"language": "en", "text": "a", "label": 1}]
    assert left_out(loaded) == [
        ("a.jsonl", "not JSON", 1, "line 2"),
        ("a.jsonl", "no text that can be used", 2, "line 3, line 5"),
        ("a.jsonl", "not a JSON object", 1, "line 4"),
        ("a.jsonl", "no label that can be used", 1, "line 6"),
    ]
    ragged = written(tmp_path, {"a.csv": "t,y\na,True\nb,1,2\nc,false\n"}) / "a.csv"
    loaded = data.from_columns(ragged, {"text": "t", "label": "y"}, language="en")
    assert list(loaded["label"]) == [1, 0]
    assert left_out(loaded) == [("a.csv", "not 2 fields", 1, "line 3")]


def test_a_json_file_may_hold_one_list(tmp_path):
    path = written(tmp_path, {"a.json": json.dumps([{"t": "a"}, {"t": "b"}], indent=1)}) / "a.json"
    assert list(data.from_columns(path, {"text": "t"}, language="en")["text"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.jsonl", b'{"t": "f\xfcr"}', r"a.jsonl is not UTF-8 \(line 1, byte 0xfc\)"),
        ("a.csv", b"t\nf\xfcr\n", r"a.csv is not UTF-8 \(line 2, byte 0xfc\)"),
        ("a.csv", b't\n"a\n', "the quotation marks do not pair"),
        ("a.csv", b"t\ra\rb\r", "a carriage return stands alone: convert the line ends"),
        ("a.jsonl", b'{"x": 1}', "a.jsonl has no field t: it has x"),
        ("a.jsonl", b"{broken", "no row could be read: a.jsonl: not JSON: 1"),
        ("a.json", b'[{"t": "f\xfcr"}]', "a.json"),
        ("a.json", b"[", "cannot read the data set .*a.json: "),
    ],
)
def test_from_columns_says_what_is_wrong(tmp_path, name, content, words):
    written(tmp_path, {name: content})
    with pytest.raises(ValueError, match=words) as caught:
        data.from_columns(tmp_path / name, {"text": "t"}, language="en")
    assert type(caught.value) is ValueError
    assert "An error occurred" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"id": 0, "text": "f\xfcr"}\n', b"{broken", b'{"id": 0, "text": "\\ud83d"}\n']
)
def test_flores_from_files_that_cannot_be_read(tmp_path, content):
    source = repository(tmp_path, {("eng_Latn", "devtest"): [{"id": 0, "text": "a"}]})
    written(source, {"eng_Latn/devtest.jsonl": content})
    with pytest.raises(ValueError, match=re.escape(str(source))) as caught:
        data.flores(source, languages=["en"])
    assert type(caught.value) is ValueError
    assert "An error occurred" not in str(caught.value)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60))
@example(b"[1]")
@example(b'{"id": {"a": 1}, "text": [2]}')
def test_flores_from_any_bytes(tmp_path, content):
    source = repository(tmp_path / uuid4().hex, {("eng_Latn", "devtest"): [{"id": 0, "text": "a"}]})
    written(source, {"eng_Latn/devtest.jsonl": content})
    value_or_refusal(lambda: data.flores(source, languages=["en"]))


# --- word lists


def test_word_lists(tmp_path, caplog):
    written(
        tmp_path,
        {
            "en": BOM + b"fool\r\n stupid ass \n\nfool\n",
            "ja.txt": "馬鹿",
            "tlh": "qoH",
            "fi": "tyhmä",
            ".DS_Store": b"\0\xff",
        },
    )
    words = data.word_lists(tmp_path)
    assert list(words.items()) == [("en", ["fool", "stupid ass"]), ("ja", ["馬鹿"]), ("fi", ["tyhmä"])]
    assert "language not known: 1 (tlh)" in caplog.text
    assert WordlistScorer(words).score(["du fool"], ["en"]) == [1.0]
    assert data.word_lists(tmp_path, languages=["fi"]) == {"fi": ["tyhmä"]}
    with pytest.raises(ValueError, match="has no id: it has en"):
        data.word_lists(tmp_path, languages=["en", "id"])
    with pytest.raises(ValueError, match="de has no words"):
        data.word_lists(written(tmp_path, {"de": "\n \n"}))
