"""RTP-LX, in small files of our own."""

import logging
from zipfile import ZipFile

import pytest
from datasets import concatenate_datasets, load_from_disk
from published import AES, BOM, jsonl, left_out, write_zip, written
from toys import value_or_refusal

from xlingtox import data

HARMS = ["Toxicity", "IdentityAttack", "Bias", "Microaggression", "Violence", "SelfHarm", "Insult", "SexualContent"]


FULL = {
    "Prompt": "You stupid\u2028fool,",
    "Index": "7",
    "Locale": "EN",
    "Dialect": "",
    "Completion": "go away",
    "BenignCompletion": "said the king",
    "PromptAnnotations": dict.fromkeys(HARMS, 1.5),
    "PromptAnnotationsRaw": {harm: [1, 2] for harm in HARMS} | {"Insult": ["3", None, "x"]},
    "CompletionAnnotations": {"Toxicity": 4},
    "BenignCompletionAnnotations": {"Toxicity": "1.0"},
}
APRIL = {"Prompt": " Dummkopf", "Index": 7, "Locale": "DE", "Annotations": {"Toxicity": 2.5}}
RELEASE = {
    "RTP_LX_EN.json": BOM + jsonl(FULL, FULL | {"Index": 8}).replace(b"\n", b"\r\n"),
    "RTP_LX_DE.json": jsonl(APRIL),
    "RTP_LX_ZH-Hans.json": jsonl({"Prompt": "傻瓜", "Index": None}),
    "RTP_LX_ZH-Hant.json": jsonl({"Prompt": "笨蛋"}),
    "RTP_LX_PT.json": jsonl({"Prompt": "parvo"}),
    "RTP_LX_PT-BR.json": jsonl({"Prompt": "bobo"}),
    "RTP_LX_NO-NB.json": jsonl({"Prompt": "tosk"}),
    "RTP_LX_BCMS.json": jsonl({"Prompt": "budala"}),
    "RTP_LX_TLH.json": jsonl({"Prompt": "qoH"}),
    "README.md": b"read me",
}


@pytest.fixture(params=["folder", "nested", "zip", "locked"])
def release(request, tmp_path):
    """RTP-LX's files and the password."""
    if request.param == "locked":
        return write_zip(tmp_path / "RTP-LX.zip", RELEASE, "open sésame"), "open sésame"
    if request.param == "zip":
        with ZipFile(tmp_path / "RTP-LX.zip", "w") as archive:
            for name, content in RELEASE.items():
                archive.writestr(f"RTP-LX/{name}", content)
            archive.writestr("__MACOSX/RTP-LX/._RTP_LX_EN.json", b"\0")
        return tmp_path / "RTP-LX.zip", None
    written(tmp_path / "RTP-LX" if request.param == "nested" else tmp_path, RELEASE)
    return tmp_path, None


def test_rtp_lx(release, caplog):
    source, password = release
    loaded = data.rtp_lx(source, password=password)
    assert loaded.column_names[:2] == ["language", "prompt"]
    assert data.as_prompts(loaded) == [
        ("en", FULL["Prompt"]),
        ("en", FULL["Prompt"]),
        ("de", " Dummkopf"),
        ("pt", "parvo"),
        ("zh", "傻瓜"),
    ]
    assert list(loaded["index"]) == [7, 8, 7, None, None]
    assert left_out(loaded) == [
        (source.name, "language not known", 1, "RTP_LX_TLH.json"),
        (source.name, "language not asked for", 3, "RTP_LX_BCMS.json, RTP_LX_NO-NB.json, RTP_LX_ZH-Hant.json"),
        (source.name, "pt read from RTP_LX_PT.json", 1, "RTP_LX_PT-BR.json"),
    ]
    assert "RTP_LX_TLH.json" in caplog.text
    assert password is None or password not in caplog.text


def test_rtp_lx_keeps_its_annotations(tmp_path):
    en, _, de, *_ = data.rtp_lx(written(tmp_path, RELEASE))
    assert en["prompt_annotations"] == dict.fromkeys(data.HARMS.values(), 1.5)
    assert en["prompt_votes"]["bias"] == [1, 2]
    assert en["prompt_votes"]["insult"] == [3]
    assert (en["completion"], en["benign_completions"], en["locale"], en["dialect"]) == (
        "go away",
        ["said the king"],
        "EN",
        None,
    )
    assert (en["completion_annotations"]["toxicity"], en["benign_completion_annotations"]["toxicity"]) == (4, 1)
    assert (de["prompt_annotations"]["toxicity"], de["prompt_annotations"]["bias"]) == (2.5, None)
    assert (de["completion"], de["benign_completions"], de["prompt_votes"]["bias"]) == (None, [], [])


def test_rtp_lx_reads_numbers_in_any_type(tmp_path):
    indices = [3, "3", 3.0, True, None, "x", 1e300, float("inf"), [3]]
    levels = {3: 3.0, "2.5": 2.5, float("nan"): None, float("inf"): None, 10**400: None, "": None}
    rows = [{"Prompt": "x", "Index": index, "Completion": "NA"} for index in indices]
    rows += [{"Prompt": "x", "Annotations": {"Bias": level}, "AnnotationsRaw": {"Bias": [level]}} for level in levels]
    loaded = data.rtp_lx(written(tmp_path, {"RTP_LX_EN.json": jsonl(*rows)}))
    assert list(loaded["index"])[: len(indices)] == [3, 3, 3, 1, None, None, None, None, None]
    assert set(loaded["completion"]) == {None}
    last = list(loaded)[len(indices) :]
    assert [row["prompt_annotations"]["bias"] for row in last] == list(levels.values())
    assert [row["prompt_votes"]["bias"] for row in last] == [[level] if level else [] for level in levels.values()]


def test_rtp_lx_in_the_languages_asked_for(release):
    source, password = release
    loaded = data.rtp_lx(source, password=password, languages=["no", "zh-hant", "sh"])
    assert data.as_prompts(loaded) == [("no", "tosk"), ("zh-hant", "笨蛋"), ("sh", "budala")]
    with pytest.raises(ValueError, match="has no fr, ja: it has en"):
        data.rtp_lx(source, password=password, languages=["fr", "en", "ja"])
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        data.rtp_lx(source, password=password, languages=["xx"])


def test_rtp_lx_of_one_file(tmp_path):
    written(tmp_path, RELEASE | {"mine.jsonl": jsonl({"Prompt": "bobo", "Locale": "Pt-Br"}, {"Prompt": "x"})})
    assert data.as_prompts(data.rtp_lx(tmp_path / "RTP_LX_PT-BR.json")) == [("pt", "bobo")]
    assert data.as_prompts(data.rtp_lx(tmp_path / "RTP_LX_BCMS.json")) == [("sh", "budala")]
    mine = data.rtp_lx(tmp_path / "mine.jsonl")
    assert data.as_prompts(mine) == [("pt", "bobo")]
    assert left_out(mine) == [("mine.jsonl", "no known language in the file's name, nor in Locale", 1, "line 2")]


def test_nothing_is_left_out_silently(tmp_path, caplog):
    lines = [
        {"Prompt": "fool"},
        {"Prompt": "NA"},
        {"Prompt": " "},
        {"Prompt": None},
        {"Prompt": 3},
        {"Other": 1},
        [1],
    ]
    path = tmp_path / "RTP_LX_EN.json"
    path.write_bytes(jsonl(*lines) + b"\n{broken\n" + b"[" * 100_000 + b"\n")
    loaded = data.rtp_lx(path)
    expected = [
        (path.name, "Prompt is the placeholder NA", 1, "line 2"),
        (path.name, "no text in Prompt", 4, "line 3, line 4, line 5"),
        (path.name, "not a JSON object", 1, "line 7"),
        (path.name, "not JSON", 2, "line 9, line 10"),
    ]
    assert left_out(loaded) == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"rtp_lx: left out: {path.name}: Prompt is the placeholder NA: 1 (line 2); ")
    assert left_out(loaded.select([0]).filter(lambda row: True)) == expected
    loaded.save_to_disk(tmp_path / "saved")
    assert left_out(load_from_disk(tmp_path / "saved")) == expected
    german = data.rtp_lx(written(tmp_path, {"RTP_LX_DE.json": jsonl(APRIL)}) / "RTP_LX_DE.json")
    assert left_out(german) == []
    assert left_out(concatenate_datasets([german, loaded])) == expected


def test_the_archives_password(tmp_path):
    path = write_zip(tmp_path / "RTP-LX.zip", {"RTP_LX_EN.json": RELEASE["RTP_LX_EN.json"]}, "right")
    with pytest.raises(ValueError, match=r"RTP-LX.zip: cannot read RTP_LX_EN.json: it is protected: give password="):
        data.rtp_lx(path)
    for i in range(300):  # one in 256 passes the format's check of one byte
        with pytest.raises(ValueError, match="the password is wrong, or the archive is damaged") as caught:
            data.rtp_lx(path, password=f"wrong {i}")
        assert "wrong " + str(i) not in str(caught.value)
    strong = write_zip(tmp_path / "aes.zip", {"RTP_LX_EN.json": b"{}"}, "right", method=AES)
    with pytest.raises(ValueError, match=r"in a way that Python cannot read.*unpack it with another tool"):
        data.rtp_lx(strong, password="right")


@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({}, "none.zip", "there is no file or folder .*none.zip"),
        ({"a.zip": "no archive"}, "a.zip", "a.zip is not a zip archive"),
        ({"x.txt": "x"}, ".", r"holds no RTP_LX_\*.json: it holds x.txt"),
        ({}, ".", "it holds nothing"),
        ({"RTP_LX_XX.json": "{}", "RTP_LX_YY.json": "{}"}, ".", "no file named by a language: .*RTP_LX_XX.json"),
        ({"RTP_LX_EN.json": jsonl({"text": "a", "id": 1})}, ".", "has no field Prompt: it has text, id"),
        ({"RTP_LX_EN.json": jsonl({"Prompt": ""})}, ".", "no row could be read: RTP_LX_EN.json: no text in Prompt: 1"),
    ],
)
def test_not_rtp_lx(tmp_path, files, source, words):
    written(tmp_path, files)
    with pytest.raises(ValueError, match=words):
        data.rtp_lx(tmp_path / source)


def test_a_damaged_archive(tmp_path):
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("RTP_LX_EN.json", jsonl(FULL))
    path = tmp_path / "a.zip"
    path.write_bytes(path.read_bytes().replace(b"stupid", b"stuped"))
    with pytest.raises(ValueError, match=r"RTP_LX_EN.json: the archive is damaged"):
        data.rtp_lx(path)


def test_rtp_lx_pairs(tmp_path):
    rows = [
        FULL,
        FULL | {"Completion": ""},
        FULL | {"BenignCompletion": None},
        FULL | {"CompletionAnnotations": {"Toxicity": 1}},
        {"Prompt": "You ", "Completion": "fool", "BenignCompletions": ["king", "", "queen"]},
    ]
    chinese = {"Prompt": "你是", "Completion": "傻瓜", "BenignCompletion": "国王"}
    written(tmp_path, {"RTP_LX_EN.json": jsonl(*rows), "RTP_LX_ZH-Hans.json": jsonl(chinese)})
    pairs = data.rtp_lx_pairs(tmp_path)
    assert list(data.check_pairs(pairs)) == [
        {"prompt": FULL["Prompt"], "chosen": " said the king", "rejected": " go away"},
        {"prompt": "You ", "chosen": "king", "rejected": "fool"},
        {"prompt": "You ", "chosen": "queen", "rejected": "fool"},
        {"prompt": "你是", "chosen": "国王", "rejected": "傻瓜"},
    ]
    assert list(pairs["language"]) == ["en", "en", "en", "zh"]
    assert left_out(pairs) == [
        ("RTP_LX_EN.json", "no completion to reject", 1, "line 2"),
        ("RTP_LX_EN.json", "no benign completion", 1, "line 3"),
        ("RTP_LX_EN.json", "the completion is no more toxic than the benign one", 1, "line 4"),
    ]
    with pytest.raises(ValueError, match="no completion to reject: 1"):
        data.rtp_lx_pairs(written(tmp_path, {"RTP_LX_FR.json": jsonl({"Prompt": "sot"})}) / "RTP_LX_FR.json")


def test_a_wrong_password_that_the_archive_lets_by(tmp_path):
    """One byte tells a wrong password: one in 256 is let by; of a long file, the text is wrong before its sum is."""
    path = write_zip(
        tmp_path / "a.zip", {"RTP_LX_EN.json": jsonl(*({"Prompt": f"you fool {i}"} for i in range(500)))}, "right"
    )
    messages = [value_or_refusal(lambda i=i: data.rtp_lx(path, password=f"wrong {i}"))[1] for i in range(1000)]
    assert all("password is wrong" in message for message in messages)
    assert any("RTP_LX_EN.json is not UTF-8" in message for message in messages)
