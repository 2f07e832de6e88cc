"""Loaders and files: wrong ones, large ones, fuzzed ones; and samples of what was loaded."""

import csv
import json
import tracemalloc

import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from published import jsonl, left_out, table, written
from toys import value_or_refusal

from xlingtox import data
from xlingtox.text import visible

# --- what is wrong with a file, in one line

READERS = {
    "rtp_lx": ("RTP_LX_EN.json", data.rtp_lx),
    "rtp_lx_pairs": ("RTP_LX_EN.json", data.rtp_lx_pairs),
    "jigsaw": ("train.csv", data.jigsaw),
    "jigsaw labels": ("train.csv", lambda path: data.jigsaw(path, labels=path)),
    "toxicity_pairwise": ("split_0.jsonl", data.toxicity_pairwise),
    "paradetox": ("paradetox.tsv", data.paradetox),
    "paradetox labelled": ("paradetox.tsv", data.paradetox_labelled),
    "line_aligned": ("en.jsonl", lambda path: data.line_aligned({"en": path, "de": path})),
    "plain text": ("en.txt", lambda path: data.line_aligned({"en": path, "de": path})),
    "word_lists": ("en", data.word_lists),
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"ok\nf\xfcr\n", r"is not UTF-8 \(line 2, byte 0xfc\): convert it"),
        ("fool".encode("utf-16"), "is UTF-16, not UTF-8"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"\x1f\x8brest", "is compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (None, "there is no file or folder"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_file(tmp_path, reader, content, words):
    name, read = READERS[reader]
    if content is not None:
        if content.startswith(b"ok"):
            header = {".csv": b"comment_text,toxic,id", ".tsv": b"toxic\tneutral1"}.get((tmp_path / name).suffix, b"{")
            content = content.replace(b"ok", header)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


# --- any text, any bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


ANY = st.text(st.characters(), max_size=50)
SURROGATES = ("\ud83d", "a\ude00b\ud83d\ude00")
HARD = ("\x00", "\u2028\x85\x1c", "x" * 100_000, "\u202eabc\u05d0", '"', "\r", "\ufeff", "NA", *SURROGATES)


def hard(test):
    """Run a test on any text, and on texts that have broken programs."""
    for text in HARD:
        test = example(text)(test)
    return settings(deadline=None)(given(ANY)(test))


def stored(text):
    """Return the text as a data set can hold it: surrogate pairs are one character, lone surrogates U+FFFD."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in json.loads(json.dumps(text)))


def loaded_or_none(read, path):
    """None where the loader says in a line that nothing could be read; any other exception fails."""
    return value_or_refusal(lambda: read(path))[0]


@hard
def test_any_text_in_json(folder, text):
    """It comes back whole, or is counted."""
    path = folder / "RTP_LX_EN.json"
    path.write_bytes(jsonl({"Prompt": text, "Dialect": text, "Completion": text}, {"Prompt": "x"}))
    first, *others = data.rtp_lx(path)
    if others:
        assert (first["prompt"], others[0]["prompt"]) == (stored(text), "x")
        assert first["dialect"] == stored(text)
    else:
        assert not visible(text) or text == "NA"
    columns = {"text": "Prompt", "prompt": "Dialect"}
    assert list(data.from_columns(path, {"text": "Prompt"}, language="en")["text"])[-1] == "x"
    (folder / "any.jsonl").write_bytes(jsonl({"Prompt": text, "Dialect": text}))
    table = loaded_or_none(lambda path: data.from_columns(path, columns), folder / "any.jsonl")
    assert (table is None) == (not visible(text))
    assert table is None or list(table) == [dict.fromkeys(("prompt", "text"), stored(text))]
    pair = dict.fromkeys(("prompt_text", "unpert_gen_text"), text) | {"pert_gen_text": text + "x"}
    (folder / "pairs.jsonl").write_bytes(jsonl(pair))
    pairs = loaded_or_none(data.toxicity_pairwise, folder / "pairs.jsonl")
    assert (pairs is None) == (not visible(text))
    assert pairs is None or pairs[0]["rejected"] == stored(text + "x")


@hard
def test_any_text_in_a_table(folder, text):
    text = stored(text)
    for name, delimiter, read in (("a.csv", ",", data.jigsaw), ("a.tsv", "\t", data.paradetox)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["comment_text", "toxic", "neutral1"])
            writer.writerow([text, "1", "2"] if name == "a.csv" else ["", f"he {text} fool", f"he {text} king"])
        table = loaded_or_none(read, folder / name)
        if name == "a.csv":
            columns = {"text": "comment_text", "label": "toxic"}
            same = loaded_or_none(lambda path, columns=columns: data.from_columns(path, columns), folder / name)
            assert (table is None) == (same is None) == (not visible(text))
            assert table is None or list(same["text"]) == list(table["text"])
            assert table is None or table[0]["text"] == text
        else:
            (pair,) = table
            assert pair["prompt"] + pair["rejected"] == f"he {text} fool"
            assert pair["prompt"] + pair["chosen"] == f"he {text} king"


@hard
def test_any_text_in_lines(folder, text):
    text = stored(text).replace("\n", " ")
    (folder / "en.txt").write_bytes(f"a\n{text}\nb\n".encode())
    table = data.line_aligned(dict.fromkeys(("en", "de"), folder / "en.txt"))
    expected = ["a", text.removesuffix("\r"), "b"] if visible(text) else ["a", "b"]
    assert list(table["en"]) == list(table["de"]) == expected
    assert data.word_lists(folder / "en.txt")["en"][0] == "a"
    for side in ("deu", "eng"):
        (folder / "pair").mkdir(exist_ok=True)
        (folder / "pair" / f"tatoeba.deu-eng.{side}").write_bytes(f"a\n{text}\nb\n".encode())
    table = data.tatoeba(folder / "pair")
    assert list(table["sentence"]) == list(table["translation"]) == expected


def named_columns(path):
    return data.from_columns(path, {"text": "comment_text" if path.suffix == ".csv" else "Prompt"}, language="en")


def both_sides(path):
    """The same bytes in both languages of a pair."""
    path.with_suffix(".eng").write_bytes(path.read_bytes())
    return data.tatoeba(path.parent)


FUZZED = {
    **READERS,
    "from_columns csv": ("any.csv", named_columns),
    "from_columns jsonl": ("any.jsonl", named_columns),
    "tatoeba": ("tatoeba.deu-eng.deu", both_sides),
}


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(sorted(FUZZED)))
@example(b"f\xfcr", "from_columns jsonl")
@example(b"a\rb", "from_columns csv")
@example(b'"a\nb",toxic,id', "jigsaw")
def test_any_bytes_are_read_or_refused(folder, content, reader):
    name, read = FUZZED[reader]
    heads = {".csv": b"comment_text,toxic,id\n", ".tsv": b"toxic\tneutral1\n", ".json": b'{"Prompt": "x"}\n'}
    for head in (b"", heads.get((folder / name).suffix, b"x\n")):
        (folder / name).write_bytes(head + content)
        loaded_or_none(read, folder / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400) | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["Index", "Locale", "Dialect", "Completion", "BenignCompletion", "BenignCompletions", "PromptAnnotations"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "PromptAnnotationsRaw", "Annotations"]), JSON), JSON, JSON)
def test_any_types_in_rtp_lx(folder, row, level, prompt):
    path = folder / "RTP_LX_EN.json"
    levels = {"PromptAnnotations": {"Toxicity": level}, "PromptAnnotationsRaw": {"Toxicity": level}}
    path.write_bytes(jsonl({"Prompt": "x", **row}, {"Prompt": "x", **levels}, {"Prompt": prompt}))
    assert list(data.rtp_lx(path)["prompt"])[:2] == ["x", "x"]
    loaded_or_none(data.rtp_lx_pairs, path)


# --- large files


def test_the_csv_modules_limit_is_put_back(tmp_path):
    before = csv.field_size_limit(1000)
    path = written(tmp_path, {"a.csv": table(["comment_text", "toxic"], ["x" * 200_000, "1"])}) / "a.csv"
    assert [len(text) for text in data.jigsaw(path)["text"]] == [200_000]
    assert csv.field_size_limit(before) == 1000


def test_a_file_is_not_held_in_memory(tmp_path):
    with (tmp_path / "train.csv").open("w") as file:
        file.write("comment_text,toxic\n")
        for i in range(15_000):
            file.write(f"{i} {'word ' * 400},1\n")
    size = (tmp_path / "train.csv").stat().st_size
    tracemalloc.start()
    loaded = data.jigsaw(tmp_path / "train.csv")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loaded) == 15_000
    assert peak < size / 3, (peak, size)
    assert loaded.cache_files  # on disk, and read from there


# --- what was left out


@pytest.mark.parametrize(
    "foreign", ['{"skipped": oh', '{"skipped": 3}', '{"skipped": [1]}', '{"skipped": [[1, 2]]}', "about skipped rows"]
)
def test_a_foreign_description_tells_nothing(tmp_path, foreign):
    table = Dataset.from_dict({"text": ["a"]})
    assert data.skipped(table).empty
    table.info.description = f"A data set.\n{foreign}"
    assert data.skipped(table).empty
    written(tmp_path, {"a.csv": "comment_text,toxic\na,1\n,1\n"})
    loaded = data.jigsaw(tmp_path / "a.csv")
    loaded.info.description = f"{foreign}\n{loaded.info.description}"
    assert left_out(loaded) == [("a.csv", "no text", 1, "line 3")]


# --- samples


def test_subsample():
    rows = [{"language": code, "label": i % 2, "text": f"{code} {i}"} for i in range(40) for code in ("en", "de", "fr")]
    full = Dataset.from_list(rows)
    drawn = data.subsample(full, 5, by="language", seed=3)
    texts = list(drawn["text"])
    assert sorted(drawn["language"]) == ["de"] * 5 + ["en"] * 5 + ["fr"] * 5
    assert [row["text"] for row in rows if row["text"] in texts] == texts  # in their order, none twice
    assert list(data.subsample(full, 5, by="language", seed=3)["text"]) == texts
    assert list(data.subsample(full, 5, by="language", seed=4)["text"]) != texts
    german = full.filter(lambda row: row["language"] == "de")
    assert [text for text in texts if text.startswith("de")] == list(
        data.subsample(german, 5, by="language", seed=3)["text"]
    )
    assert len({text.split()[1] for text in texts}) == 5  # the same places in each
    both = data.subsample(full, 2, by=["language", "label"])
    assert len(both) == 12
    assert sum(both["label"]) == 6
    assert sorted(data.subsample(full, 120)["text"]) == sorted(full["text"])
    firsts = [data.subsample(full, 1, seed=seed)["text"][0] for seed in range(300)]
    assert len(set(firsts)) > 100  # 120 (1 - e^-2.5) = 110 expected


@pytest.mark.parametrize(
    ("n", "by", "words"),
    [
        (0, (), "n is 0, of 3 rows: expected at least 1"),
        (4, (), "n is 4, and there are fewer rows: 3"),
        (2, "language", "fewer rows: 1 de"),
        (1, "x", "there is no column x: there are language"),
    ],
)
def test_samples_that_cannot_be(n, by, words):
    with pytest.raises(ValueError, match=words):
        data.subsample(Dataset.from_dict({"language": ["en", "en", "de"]}), n, by=by)
