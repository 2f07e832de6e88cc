"""PerspectiveReplay on small files in the publishers' layouts."""

import json
import logging

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from perspective_server import answer_of
from toys import value_or_refusal

from xlingtox.scoring import PerspectiveReplay, UncoveredLanguage, UnscoredError


def line(query, score, *languages):
    answer = None if score is None else answer_of(score)
    if answer and languages:
        answer["languages"] = list(languages)
    return {"query": query, "response": answer, "prompt": "p"}


@pytest.fixture
def written(tmp_path):
    """`written(name, rows)`: a file of JSON lines."""

    def write(name, rows):
        file = tmp_path / name
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return file

    return write


def test_the_papers_files(written, tmp_path):
    written("perspective_api_eval-output-rtp_lx_zh-hans.json", [line("傻", 0.75, "zh"), "", line("", 0.01, "zh")])
    written("perspective_api_eval-output-rtp_lx_en.json", [line("a\u2028b", 0.5, "en"), line("\ud800\0", 1, "en")])
    (tmp_path / "readme.txt").write_text("no responses")
    replay = PerspectiveReplay(tmp_path)
    assert replay.languages == {"en", "zh"}
    assert replay.name == "Perspective, stored"
    texts, codes = ["\ud800\0", "傻", "", "a\u2028b"], ["en", "zh", "zh", "en"]
    assert replay.score(texts, codes).tolist() == [1.0, 0.75, 0.01, 0.5]
    english = PerspectiveReplay(tmp_path / "perspective_api_eval-output-rtp_lx_en.json")
    assert english.revision != replay.revision == PerspectiveReplay(sorted(tmp_path.glob("*.json"))).revision
    with pytest.raises(UncoveredLanguage, match="does not cover zh: it covers en"):
        english.score(["傻"], ["zh"])


def test_real_toxicity_prompts(written):
    scored = {"text": "He is", "toxicity": 0.25, "insult": 0.5}
    unscored = {"text": "a fool", "toxicity": None}
    files = [
        written("prompts.jsonl", [{"filename": "0.txt", "prompt": scored, "continuation": unscored}]),
        written("prompted_gens.jsonl", [{"prompt": scored, "generations": [{"text": "kind", "toxicity": 0.125}]}]),
        written("eos_gens.jsonl", [{"text": "stupid", "toxicity": 0.875}]),
    ]
    replay = PerspectiveReplay(files)
    assert replay.languages == {"en"}
    assert replay.score(["kind", "He is", "stupid"], ["en"] * 3).tolist() == [0.125, 0.25, 0.875]
    with pytest.raises(
        UnscoredError, match=r"no stored score for 2 of 3 texts; the first is text 1, 'a fool' in en"
    ) as e:
        replay.score(["kind", "a fool", "other"], ["en"] * 3)
    assert e.value.unscored == 2


def test_all_six_attributes_of_stored_responses(written):
    six = {"SEVERE_TOXICITY": 0.1, "IDENTITY_ATTACK": 0.2, "INSULT": 0.3, "PROFANITY": 0.4, "THREAT": 0.5}
    answer = answer_of(0.75, **six) | {"languages": ["en"]}
    rtp = {"text": "b", "toxicity": 0.5, "insult": 0.25, "severe_toxicity": None}
    replay = PerspectiveReplay(
        [written("a.json", [line("c", 0.5, "en"), {"query": "a", "response": answer}]), written("rtp.jsonl", [rtp])]
    )
    found = replay.attributes(["a"], ["en"])
    assert found.iloc[0].to_dict() == {"TOXICITY": 0.75, **six}
    two = replay.attributes(["b", "a"], ["en", "en"], names=["INSULT", "TOXICITY"])
    assert two.to_numpy().tolist() == [[0.25, 0.5], [0.3, 0.75]]
    with pytest.raises(UnscoredError, match=r"no stored score for 2 of 3 texts; the first is text 1, 'b' in en"):
        replay.attributes(["a", "b", "c"], ["en"] * 3, names=["THREAT"])
    with pytest.raises(ValueError, match="unknown attribute 'WIT'"):
        replay.attributes(["a"], ["en"], names=["WIT"])


def test_an_attribute_out_of_range_is_refused(written):
    with pytest.raises(ValueError, match=r"line 1: the response has 1\.5 as INSULT"):
        PerspectiveReplay(written("x.json", [{"text": "a", "toxicity": 0.5, "insult": 1.5}]))


def test_what_failed_once_and_was_answered_later_has_a_score(written):
    rows = [line("a", None), line("a", 0.5, "sv"), line("a", None)]
    assert PerspectiveReplay(written("x.json", rows), language="sv").score(["a"], ["sv"]).tolist() == [0.5]


def test_differing_responses_are_told(written, caplog):
    rows = [line("a", 0.5, "en"), line("a", 0.5, "en"), line("a", 0.75, "en"), line("a", 0.1, "sv")]
    with caplog.at_level(logging.WARNING):
        replay = PerspectiveReplay(written("x.json", rows))
    assert "1 responses differ" in caplog.text
    assert replay.score(["a", "a"], ["en", "sv"]).tolist() == [0.5, 0.1]


def test_a_language_that_the_response_does_not_say(written):
    file = written("x.json", [line("a", 0.5)])
    with pytest.raises(ValueError, match=r"x.json, line 1: the response does not say its language: give language="):
        PerspectiveReplay(file)
    assert PerspectiveReplay(file, language="zh-Hans").languages == {"zh"}
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        PerspectiveReplay(file, language="xx")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: "),
        ("[]", "expected a JSON object"),
        (
            {"request_id": 3, "response": {}},
            "expected query and response.*, got request_id, response",
        ),
        ({}, "got nothing"),
        ({"query": "a", "response": {"languages": ["en"]}}, "has no TOXICITY"),
        (line("a", 1.5, "en"), "has 1.5 as TOXICITY"),
        (line("a", "0.5", "en"), "has '0.5' as TOXICITY"),
        (line("a", True, "en"), "has True as TOXICITY"),
        ({"text": "a", "toxicity": -1}, "has -1 as TOXICITY"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"query": ' + "9" * 5000 + "}", "line 2: not JSON"),
        ({"query": None, "response": answer_of(0.5) | {"languages": ["en"]}}, "line 2: query is null: expected text"),
        ({"text": ["x"], "toxicity": 0.5}, r'line 2: text is \["x"\]: expected text'),
        (
            {"query": "a", "response": answer_of(0.5) | {"languages": "en"}},
            'line 2: languages is "en": expected a list',
        ),
        ({"query": "a", "response": answer_of(0.5) | {"languages": {"en": 1}}}, "line 2: languages is"),
        ({"query": "a", "response": answer_of(0.5) | {"languages": [["en"]]}}, "line 2: unknown language"),
        ({"generations": 3, "prompt": "a"}, "got generations, prompt"),
    ],
)
def test_lines_that_are_no_responses(written, row, words):
    with pytest.raises(ValueError, match=words):
        PerspectiveReplay(written("x.json", [line("b", 0.5, "en"), row]))


def test_no_files(tmp_path, written):
    for nothing in (tmp_path, tmp_path / "x.json"):
        with pytest.raises(FileNotFoundError, match="is neither a file nor a folder with"):
            PerspectiveReplay(nothing)
    with pytest.raises(ValueError, match="no response with a score in"):
        PerspectiveReplay(written("x.json", [line("a", None)]), language="en")


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"query": "f\xfcr"}\n')
    with pytest.raises(ValueError, match=r"x.json, line 1: not UTF-8 \(byte 0xfc\)"):
        PerspectiveReplay(tmp_path)


NAMES = "query response languages attributeScores TOXICITY summaryScore value text toxicity prompt generations".split()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["en", "zh-Hant", "a", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
ANSWERS = st.builds(lambda score, said: answer_of(score) | {"languages": said}, JSON, JSON)
ROWS = st.one_of(
    JSON,
    st.fixed_dictionaries({"query": JSON, "response": JSON | ANSWERS}),
    st.fixed_dictionaries({"text": JSON, "toxicity": JSON}, optional={"generations": JSON, "prompt": JSON}),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(ROWS.map(json.dumps).map(str.encode) | st.binary(max_size=40))
@example(b"[" * 100_000)
@example(b'{"query": "a", "response": {"languages": {"1": 1}}}')
def test_any_line_is_a_response_or_refused_by_its_number(tmp_path, line):
    file = tmp_path / "fuzzed.json"
    file.write_bytes(json.dumps({"text": "x", "toxicity": 0.5}).encode() + b"\n" + line.replace(b"\n", b" ") + b"\n")
    replay, refusal = value_or_refusal(lambda: PerspectiveReplay(file))
    if replay is None:
        assert "fuzzed.json, line 2: " in refusal
    else:
        assert replay.score(["x"], ["en"]).tolist() == [0.5]
