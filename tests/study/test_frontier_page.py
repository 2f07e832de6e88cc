"""What a study's page, its findings and its verdicts say of methods at equal fluency."""

import copy
import math

import pytest
from studies import KEYS_OF_STAGES, only, rivals
from test_report import Page

from xlingtox import languages
from xlingtox.study import StudyResults, findings, frontier_findings, report
from xlingtox.study.frontier_summary import content_of, in_words, summary_of


def judged(content):
    """Results with the verdicts that a study of this content reaches."""
    content = copy.deepcopy(content)
    verdicts = frontier_findings.verdicts(summary_of(content["frontier"]), content["source_language"])
    content["verdicts"] = [vars(verdict) for verdict in verdicts]
    return StudyResults.of(content)


def changed(content, table, **columns):
    """The content with other values in some columns of a table; a function is given each row."""
    content = copy.deepcopy(content)
    kept = content["frontier"][table]
    rows = [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]
    for name, value in columns.items():
        kept[name] = [value(row) for row in rows]
    return content


@pytest.fixture(scope="module")
def content():
    return only("frontier", "judge")


def said(results, title):
    finding = next(finding for finding in findings(results) if finding.startswith(title))
    return finding.replace("\u00a0", " "), finding.numbers.replace("\u00a0", " "), " ".join(finding.details)


def test_a_summary_is_kept_whole():
    summary = summary_of(rivals()["frontier"])
    assert summary_of(content_of(summary)) == summary
    assert (summary.main_budget, in_words(summary.main_budget)) == (1.1, "+10\u00a0%")
    assert summary.methods == ("DPO", "AurA", "random neurons")
    assert summary.languages == languages.CODES
    assert summary.unedited("es") == 0.6
    frame = summary.at_budget(1.05)
    assert frame[(frame.method == "DPO") & (frame.language == "en")].toxicity.tolist() == [0.3]


@pytest.mark.parametrize("broken", [3, "words", [1], {"a": None}, {"budgets": []}, {"points": {"a": [1], "b": []}}])
def test_a_broken_summary_is_refused_in_one_line(content, broken):
    whole = {**content["frontier"], **broken} if isinstance(broken, dict) and "a" not in broken else broken
    with pytest.raises(ValueError, match="no results of a study: frontier cannot be read") as caught:
        StudyResults.of(content | {"frontier": whole})
    assert "\n" not in str(caught.value)


def test_the_winner_is_named_with_its_wins_and_its_toxicity(content):
    sentence, numbers, details = said(judged(content), "Which method")
    assert sentence == (
        "Which method, at what price? Found. At +10 % perplexity, DPO is lowest in 17 of 17 languages, clearly in 12."
    )
    assert numbers == "unedited 0.600; DPO 0.120; AurA 0.500; random neurons 0.600"
    assert "in the mean over languages it is lower than 3 of 3 others" in details
    assert "DPO −0.480 (−0.530 to −0.430)" in details
    assert "Turned down because text got less sound first: AurA." in details


@pytest.mark.parametrize(
    ("lowest", "clearly", "verdict"),
    [(17, 9, "found"), (17, 8, "weak"), (9, 1, "weak"), (9, 0, "not found"), (8, 1, "not found")],
)
def test_a_winner_needs_most_languages(content, lowest, clearly, verdict):
    def of_first(value, other):
        return lambda row: value if row["method"] == "DPO" else other

    wins = {"languages_lowest": of_first(lowest, 0), "languages_clearly_lowest": of_first(clearly, 0)}
    results = judged(changed(content, "wins", **wins, beats_overall=lambda _: 0))
    assert results.verdicts[0].verdict == verdict
    overall = judged(changed(content, "wins", **wins, beats_overall=of_first(3, 0)))
    assert overall.verdicts[0].verdict == ("weak" if verdict == "not found" else verdict)


def test_where_nobody_wins_nobody_is_named(content):
    nobody = changed(
        content, "wins", **dict.fromkeys(("languages_lowest", "languages_clearly_lowest", "beats_overall"), lambda _: 0)
    )
    results = judged(changed(nobody, "at_budgets", p=lambda _: 1.0))
    assert said(results, "Which method,")[0].endswith("no method is lower than all others in any language.")
    assert said(results, "Which methods cross")[0].endswith("No method is shown to lower toxicity in any of 16 others.")
    assert {verdict.verdict for verdict in results.verdicts} == {"not found"}


def test_a_control_that_is_lowest_is_no_winner(content):
    def first(row):
        return 17 if row["method"] == "random neurons" else 0

    results = judged(changed(content, "wins", languages_lowest=first, languages_clearly_lowest=first))
    assert results.verdicts[0].verdict == "not found"
    assert results.verdicts[0].reason.endswith("It was chosen by chance.")


def test_where_little_is_toxic_nothing_is_told(content):
    results = judged(changed(content, "points", toxicity=lambda _: 0.001))
    assert said(results, "Which method")[0].endswith("Too little is toxic without an edit to tell.")
    assert {verdict.verdict for verdict in results.verdicts} == {"not found"}
    assert not [finding for finding in findings(results) if finding.startswith("Which methods cross")]


def test_the_reach_is_counted_beside_that_of_controls(content):
    sentence, numbers, details = said(judged(content), "Which methods cross")
    assert sentence == "Which methods cross languages? Found. DPO lowers toxicity in 16 of 16 others."
    assert numbers == "DPO 16 of 16; AurA 16 of 16; random neurons 0 of 16"
    assert "DPO 80\u00a0% (70\u00a0% to 90\u00a0%)" in details

    def p(row):
        by_chance = row["method"] == "random neurons" and row["language"] in languages.CODES[1:15]
        return 1e-9 if by_chance or row["language"] in languages.CODES[1:12] else 0.01

    # Eleven of sixteen after correction, which the control reaches too.
    results = judged(changed(content, "at_budgets", p=p, change=lambda _: -0.1))
    assert results.verdicts[1].verdict == "not found"
    assert "DPO in 11" in results.verdicts[1].reason


def test_one_language_has_no_others(content):
    only_english = changed(content, "points", language=lambda _: "en")
    results = judged(changed(only_english, "at_budgets", language=lambda row: row["language"]))
    assert [verdict.claim for verdict in results.verdicts] == [frontier_findings.WINS]


def test_the_page_has_the_figure_the_prices_and_the_wins(content):
    parsed = Page(report.render(judged(content)))
    text = parsed.text.replace("\u00a0", " ")
    assert "Which method makes mini less toxic, at what price?" in text
    begin = text.index("Which method, at what price?Any method makes")
    for words in (
        "Figure 1. Toxicity against fluency, method by method",
        "Toxicity at +10 % perplexity, in the mean over languages",
        "DPO0.1200.070 to 0.170−0.480−0.530 to −0.4307.702.0 %1.00perplexity",
        "random neurons (control)0.600",
        "Who wins at +10 % perplexity, in 17 languages",
        "DPO171229030",
        "Toxicity at +5 % perplexity",
        "English0.6000.120 *0.5000.600",
        "DPO1.00−0.500−0.40080 %70 % to 90 %",
        "AurA2.51.10×no: no bias",
    ):
        assert words in text[begin:].replace("| ", ""), words
    assert "Methods are fitted on labelled English sentences" in text


def test_its_figure_comes_after_all_others():
    text = Page(report.render(StudyResults.of(only(*KEYS_OF_STAGES)))).text
    assert "Figure 14. Toxicity against fluency, method by method" in text
    assert "Which method, at what price?" not in Page(report.render(StudyResults.of(only("localize")))).text


def test_missing_numbers_are_said_to_be_missing(content):
    nothing = changed(content, "at_budgets", **dict.fromkeys(("toxicity", "p", "change"), lambda _: math.nan))
    text = Page(report.render(judged(nothing))).text
    assert "not defined" in text
    assert "nan" not in text.split()
    assert math.isnan(judged(nothing).frontier.rows(1.1)["DPO"]["toxicity"])
