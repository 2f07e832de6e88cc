"""A study in a terminal, and as one JSON value."""

import json

import pytest
from studies import KEYS_OF_STAGES, hostile, made_up, only, told

from xlingtox.study import StudyResults, findings, terminal


def test_a_study_is_told_in_eighty_columns():
    results = StudyResults.of(told())
    text = terminal.summary(results)
    assert text.isascii(), "every terminal can show it"
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Model: mini, fingerprint abc123"
    for line in (
        "Beware. Too little toxicity to tell: 3 of 400 continuations are toxic.",
        "weak       Toxicity can be localised in these 100 neurons.",
        "Probe: held-out accuracy 0.993 (majority 0.500), AUC 0.999",
        "Neurons: 100 candidates, 36 of them sources, of 2,048",
        "English                0.92    0.02   0.570   0.012       -       -   6.05  6.98",
        "random       0.600   0.599   0.597   0.594   0.591   0.588   0.582",
        "degenerate   0.010   0.010   0.010   0.010   0.010   0.010   0.010",
        "Retrieval against the relative drop in average toxicity: r = 0.38, p = 0.147",
        "Note: Amharic was dropped: no judge covers it.",
    ):
        assert line in lines
    printed = " ".join(text.split())
    for finding in findings(results):
        for words in (finding, finding.numbers):
            plain = words
            for shown, written in (("−", "-"), ("’", "'"), ("→", "->")):
                plain = plain.replace(shown, written)
            assert " ".join(plain.split()) in printed
    assert printed.index("Model:") < printed.index("Beware.") < printed.index("weak ") < printed.index("Where does it")


@pytest.mark.parametrize("width", [40, 60, 120])
def test_it_fits_other_widths(width):
    lines = terminal.summary(StudyResults.of(told()), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.startswith("Dose, sd")]) == {40: 5, 60: 3, 120: 2}[width]
    with pytest.raises(ValueError, match="width is 39: expected at least 40"):
        terminal.summary(StudyResults.of(made_up()), 39)


@pytest.mark.parametrize("stages", [[stage] for stage in KEYS_OF_STAGES if stage in ("localize", "retrieve", "tune")])
def test_a_stage_alone_is_told_without_the_others(stages):
    text = terminal.summary(StudyResults.of(only(*stages)))
    said = {"localize": "Probe: held-out", "retrieve": "Do translations lie", "tune": "Did tuning learn its pairs?"}
    assert [stage for stage, words in said.items() if words in text] == stages
    assert "only DPO" not in text
    assert "Editing the sources" not in text


def test_another_source_language_is_named():
    text = terminal.summary(StudyResults.of(only(*KEYS_OF_STAGES, source_language="es")))
    assert "Spanish-only DPO" in text
    assert "Does toxicity fall in Spanish, which was tuned?" in text
    assert "English-only" not in text


def test_json_holds_what_the_page_tells():
    results = StudyResults.of(told())
    content = json.loads(json.dumps(terminal.as_json(results), allow_nan=False))
    assert list(content) == ["model", "provenance", "warnings", "verdicts", "findings", "languages"]
    assert content["model"] == "mini"
    assert content["verdicts"] == made_up()["verdicts"]
    assert content["warnings"] == made_up()["warnings"]
    assert content["provenance"]["data"] == told()["origins"]
    assert content["provenance"]["recipe"] == told()["recipe"]
    assert content["provenance"]["languages"]["hi"] == "Hindi"
    assert content["findings"][0]["sentence"].startswith("Where does it live? Weak.")
    assert content["findings"][0]["verdict"] == "weak"
    english = content["languages"][0]
    assert (english["name"], english["emt_after"], english["retrieval"]) == (
        "English",
        made_up()["after"]["en"]["emt"],
        None,
    )
    assert json.dumps(terminal.as_json(StudyResults.of(hostile())), allow_nan=False)


def test_hostile_text_moves_no_cursor():
    text = terminal.summary(StudyResults.of(hostile("\x1b[2J\rgone\u202e")))
    assert not {"\x1b", "\r", "\u202e"} & set(text)


@pytest.mark.parametrize("perplexities", [(270.5, 4433.3), (99_999.0, 1e7), (1e5, 812.44)])
def test_large_numbers_stay_apart(perplexities):
    content = told()
    for side, perplexity in zip(("before", "after"), perplexities, strict=True):
        content[side]["en"]["perplexity"] = perplexity
    row = next(line for line in terminal.summary(StudyResults.of(content)).splitlines() if line.startswith("English  "))
    assert len(row.split()) == 1 + 2 * 4
    assert len(row) <= 80
    assert [float(cell) for cell in row.split()[-2:]] == pytest.approx(perplexities, rel=0.05)
