"""XSTest, OR-Bench and PolyRefuse, in small files of our own in the published forms."""

import json
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from published import BOM, jsonl, left_out, table, written

from xlingtox import data

XSTEST = ["id", "prompt", "type", "label", "focus", "note"]


def as_rows(loaded):
    return [tuple(row.values()) for row in loaded]


def test_xstest(tmp_path):
    rows = [
        ["1", '"How can I ""kill"" a process,\nquickly?"', "homonyms", "safe", "kill", "violence"],
        ["26", "How can I harm him?", "contrast_homonyms", "unsafe", "", ""],
        ["v2-3", " ", "homonyms", "safe", "", ""],
        ["v2-4", "Is it?", "homonyms", "both", "", ""],
    ]
    path = written(tmp_path, {"xstest_prompts.csv": BOM + table(XSTEST, *rows)}) / "xstest_prompts.csv"
    loaded = data.xstest(path)
    assert loaded.column_names == ["language", "prompt", "harmful", "category", "index"]
    assert as_rows(loaded) == [
        ("en", 'How can I "kill" a process,\nquickly?', False, "homonyms", 1),
        ("en", "How can I harm him?", True, "contrast_homonyms", 26),
    ]
    assert left_out(loaded) == [
        ("xstest_prompts.csv", "no text in prompt", 1, "line 5"),
        ("xstest_prompts.csv", "label neither safe nor unsafe", 1, "line 6"),
    ]
    with ZipFile(tmp_path / "xstest.zip", "w") as archive:
        archive.write(path, "xstest-main/xstest_prompts.csv")
    assert as_rows(data.xstest(tmp_path / "xstest.zip")) == as_rows(loaded)
    assert as_rows(data.xstest(tmp_path)) == as_rows(loaded)
    assert set(data.xstest(path, language="sv")["language"]) == {"sv"}
    assert data.are_harmful(loaded) == [False, True]
    assert data.meanings(loaded) == {"en": [1, 26]}


def test_xstest_without_labels_and_as_json(tmp_path):
    rows = [{"id": "v2-1", "type": "homonyms", "prompt": "a"}, {"id": "x", "type": "contrast_homonyms", "prompt": "b"}]
    expected = [("en", "a", False, "homonyms", 1), ("en", "b", True, "contrast_homonyms", None)]
    written(
        tmp_path,
        {
            "xstest_v2_prompts.csv": table(
                ["id", "type", "prompt"], *([r["id"], r["type"], r["prompt"]] for r in rows)
            ),
            "a.jsonl": jsonl(*rows),
            "b.json": json.dumps(rows),
            "c.json": jsonl(*rows),
        },
    )
    for name in ("xstest_v2_prompts.csv", "a.jsonl", "b.json", "c.json"):
        assert as_rows(data.xstest(tmp_path / name)) == expected, name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", table(["id", "text"], ["1", "a"]), "has no field prompt, label or type: it has id, text"),
        ("a.json", b'"text"', "neither a JSON array nor JSON lines|no row could be read"),
        ("a.json", b"[1, 2]", r"no row could be read: a.json: not a JSON object: 2 \(item 0, item 1\)"),
        ("a.json", b"{", "is neither a JSON array nor JSON lines"),
        ("a.json", b"[" * 100_000, "is neither a JSON array nor JSON lines"),
        ("a.csv", b"<!DOCTYPE html>", "is a web page: download the raw file"),
        ("a.csv", "prompt,label\né,safe\n".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_not_xstest(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words):
        data.xstest(written(tmp_path, {name: content}) / name)


def test_several_files_of_xstest(tmp_path):
    written(tmp_path, {"xstest_prompts.csv": "", "xstest_v2_prompts.csv": ""})
    with pytest.raises(ValueError, match=r"several files: give one of xstest_prompts.csv and xstest_v2_prompts.csv"):
        data.xstest(tmp_path)


def test_an_array_is_read_whole_only_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("xlingtox.data.reading.LONGEST_LINE", 100)
    path = written(tmp_path, {"a.json": "[\n" + '{"prompt": "a", "label": "safe"},\n' * 9 + "]"}) / "a.json"
    with pytest.raises(ValueError, match="the array is longer than 100 characters: write it as JSON lines"):
        data.xstest(path)


def test_or_bench(tmp_path):
    head = ["prompt", "category"]
    files = {
        "or-bench-80k.csv": table(head, ["easy", "hate"]),
        "or-bench-hard-1k.csv": table(head, ["hard", "illegal"], ["", "illegal"]),
        "or-bench-toxic.csv": table(head, ["toxic", "illegal"]),
        "README.md": "read me",
    }
    written(tmp_path / "or-bench", files)
    folder = tmp_path / "or-bench"
    loaded = data.or_bench(folder)
    expected = [("en", "hard", False, "illegal", None), ("en", "toxic", True, "illegal", None)]
    assert as_rows(loaded) == expected
    assert left_out(loaded) == [("or-bench-hard-1k.csv", "no text in prompt", 1, "line 3")]
    assert as_rows(data.or_bench(folder, parts="80k")) == [("en", "easy", False, "hate", None)]
    assert as_rows(data.or_bench(folder / "or-bench-toxic.csv")) == expected[1:]
    assert data.or_bench(folder / "or-bench-toxic.csv", harmful=False)["harmful"][:] == [False]
    with ZipFile(tmp_path / "or-bench.zip", "w") as archive:
        for name in files:
            archive.write(folder / name, name)
    assert as_rows(data.or_bench(tmp_path / "or-bench.zip")) == expected
    (folder / "mine.json").write_text('[{"prompt": "a"}]')
    assert as_rows(data.or_bench(folder / "mine.json", harmful=True, language="de")) == [("de", "a", True, None, None)]
    with pytest.raises(ValueError, match=r"mine.json does not say which part .* \(80k, hard-1k, toxic\): give harmful"):
        data.or_bench(folder / "mine.json")
    with pytest.raises(ValueError, match="part is 'hard': expected some of 80k, hard-1k, toxic"):
        data.or_bench(folder, parts=["hard"])
    with pytest.raises(ValueError, match="there are no parts"):
        data.or_bench(folder, parts=[])
    with pytest.raises(ValueError, match="harmful= is for one file"):
        data.or_bench(folder, harmful=True)
    (folder / "or-bench-toxic.csv").unlink()
    with pytest.raises(ValueError, match="has no file of the parts toxic: it has 80k, hard-1k"):
        data.or_bench(folder)


def array(*texts):
    return json.dumps([{"instruction": text, "category": None} for text in texts])


def test_poly_refuse(tmp_path):
    spoiled = json.dumps([{"instruction": "schlimm"}, {"instruction": None}])
    files = {
        "PolyRefuse/harmful_test_translated_de.json": spoiled,
        "PolyRefuse/harmful_test_translated_ja.json": array("悪い", "怖い"),
        "PolyRefuse/harmful_test_translated_yo.json": array("x", "y"),
        "PolyRefuse/harmful_test_translated_zh.json": array("坏", "怕"),
        "PolyRefuse/harmless_test_translated_de.json": array("gut"),
        "PolyRefuse/harmless_test_translated_ja.json": array("良い"),
        "PolyRefuse/harmless_test_translated_yo.json": array("z"),
        "PolyRefuse/harmful_test_back_translated/harmful_test_back_translated_de.json": array("no"),
        "PolyRefuse/harmful_val_translated_de.json": array("val"),
        "dataset/splits/harmful_test.json": array("bad", "evil"),
        "dataset/splits/harmless_test.json": array("good", "better", "best"),
        "dataset/splits/harmless_train_200_sampled.json": array("no"),
    }
    loaded = data.poly_refuse(written(tmp_path, files))
    assert as_rows(loaded) == [
        ("en", "bad", True, None, 0),
        ("en", "evil", True, None, 2),
        ("en", "good", False, None, None),
        ("en", "better", False, None, None),
        ("en", "best", False, None, None),
        ("de", "schlimm", True, None, 0),
        ("de", "gut", False, None, 1),
        ("ja", "悪い", True, None, 0),
        ("ja", "怖い", True, None, 2),
        ("ja", "良い", False, None, 1),
    ]
    assert ("harmful_test_translated_de.json", "no text in instruction", 1, "item 1") in left_out(loaded)
    assert (tmp_path.name, "only harmful or only harmless requests", 1, "zh") in left_out(loaded)
    assert set(data.poly_refuse(tmp_path, languages=["yo", "ja"])["language"]) == {"yo", "ja"}
    # Of several English files, the translated one or the sample is aligned with the others.
    written(tmp_path, {"dataset/splits/harmless_test_200_sampled.json": array("sampled")})
    assert data.poly_refuse(tmp_path, languages="en")["prompt"][:] == ["bad", "evil", "sampled"]
    written(tmp_path, {"PolyRefuse/harmless_test_translated_en.json": array("translated")})
    assert data.poly_refuse(tmp_path, languages="en")["prompt"][:] == ["bad", "evil", "translated"]
    with pytest.raises(ValueError, match=r"holds no file named by a language: .*: language not asked for"):
        data.poly_refuse(tmp_path, languages="sv")
    with pytest.raises(ValueError, match=r"has no file harmless_val_translated_\*.json: give PolyRefuse's folder"):
        data.poly_refuse(tmp_path, split="val")


def test_are_harmful():
    assert data.are_harmful(pd.DataFrame({"harmful": np.array([True, False])})) == [True, False]
    assert data.are_harmful([{"harmful": 1}, {"harmful": 0}]) == [True, False]
    for value in (None, float("nan"), 2, "true"):
        with pytest.raises(ValueError, match="expected true or false"):
            data.are_harmful([{"harmful": value}])
    with pytest.raises(ValueError, match="the prompts have no column 'harmful'"):
        data.are_harmful(["a text"])
