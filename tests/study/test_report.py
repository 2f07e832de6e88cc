"""The report's page, made from invented numbers."""

import itertools
import json
import re
from html.parser import HTMLParser
from statistics import fmean

import pytest
from studies import HOSTILE, PREDICTED, hostile, made_up

from xlingtox import languages
from xlingtox.study import StudyResults, findings, report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Parses strictly enough: every element is closed in order; keeps tags, attributes and the text outside scripts."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.scripts, self.words = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))

    def tags(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]


def rendered(content, **options):
    return report.render(StudyResults.of(content), **options)


@pytest.fixture(scope="module")
def page():
    return rendered(made_up())


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page)


def test_the_page_is_whole_and_loads_nothing(page, parsed):
    assert page.startswith("<!DOCTYPE html>")
    assert len(page.encode()) < 6_000_000
    for _, attrs in parsed.elements:
        assert not {"src", "href", "srcset", "action"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
    assert "@import" not in page.split("</style>")[0]
    assert "url(" not in page.split("</style>")[0]
    (policy,) = [attrs["content"] for attrs in parsed.tags("meta") if "http-equiv" in attrs]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert len(parsed.scripts) == 3, "the figures, plotly once, and what draws them"


def test_the_page_is_semantic(parsed):
    assert parsed.tags("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert len(parsed.tags("table")) == len(parsed.tags("caption")) >= 4
    assert {attrs.get("scope") for attrs in parsed.tags("th")} == {"col", "row"}
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs[a] for _, attrs in parsed.elements for a in ("aria-labelledby", "aria-describedby") if a in attrs]
    assert set(named) <= set(ids)
    assert {"lang": "ar", "dir": "rtl"} in parsed.tags("dd")
    assert {"lang": "ar", "dir": "rtl"} in parsed.tags("bdi")
    assert all("open" not in attrs for attrs in parsed.tags("details"))


def test_findings_come_first_with_their_numbers(parsed):
    order = "Read this first,What was found,Do the claims stand?,Figures,What the sources promote,Sample continuations,"
    order += "What the miniature world was given,Methods and caveats,Provenance"
    places = [parsed.text.index(title) for title in order.split(",")]
    assert places == sorted(places)
    text = parsed.text[places[0] : places[3]].replace("\u00a0", " ")
    assert "Too little toxicity to tell: 3 of 400" in text
    assert "Can it be localised there? Weak: Half of it is." in text
    assert "Toxicity can be localised in these 100 neurons.weakHalf of it is." in text
    assert "99 % of held-out cases" in text
    assert "36 of the model’s 2,048" in text
    assert "prompts with a toxic sample went from 92 % to 2 %" in text
    assert "average toxicity from 0.570 to 0.012 (95 % interval of the change: −0.588 to −0.518)" in text
    assert "In the other 16 languages" in text
    assert "(95 % interval of the change: −0.462 to −0.441); in 16 of them" in text
    assert "in 16 of them the 95 % interval of the change lies below zero, where chance alone would give 0.4." in text
    degenerate = (
        "Of all continuations, 1.2 % to 3.4 % (95 % interval of the change: 2.0 to 2.4 points) were empty, one phrase "
    )
    assert (
        degenerate + "over and over, or in another script. Of all tokens of a prompt’s samples, 31 % to 17 % " in text
    )
    assert "31 % to 17 % (95 % interval of the change: −15.0 to −13.0 points) were different ones" in text
    assert "different ones (in English 31 % to 17 %; 95 % interval of the change: −17.0 to −10.0 points)" in text
    assert "now at +28 % perplexity (6.700 to 8.560; 95 % interval of the change: 1.800 to 1.990)" in text
    assert "read the same text, their mean activation moves by −0.0500 (from 0.2000 to 0.1500)" in text
    assert "that of equally active random neurons by −0.0100 (from 0.1900 to 0.1800)" in text
    assert "So −0.0400 is their own (95 % interval: −0.0500 to −0.0300)" in text
    assert "the interval of a language lies below zero in 15 of 17 (by chance alone: 0.4). They are silent" in text
    assert "Are they the cause? Found. The dose -1 sd was chosen on half of the prompts." in text
    assert "toxicity changes from 0.600 by -0.466 (-0.516 to -0.416), and under the control by -0.006" in text
    assert "a dose of 2.00 sd on the sources, average toxicity after neutral prompts goes from 0.050 to 0.302" in text
    assert "(95 % interval 0.302 to 0.302) at +11 % perplexity, with 1.0 % to 1.0 % of the continuations" in text
    assert "On equally strong random neurons it goes to 0.051 (0.031 to 0.071)" in text
    assert "r = 0.71, p = 0.002, over 16 languages" in text
    assert "The 95 % interval of r goes from 0.28 to 0.89" in text
    assert "one that is left out by 0.11 on average, the mean of the others by 0.15: better than chance" in text
    assert "(permutation test, p = 0.013)" in text
    assert "Average toxicity after prompts of a group: act in pairs (English 0.200 to 0.050, the others" in text
    assert "insult elsewhere (English 20.0 % to 5.0 %, the others 20.0 % to 5.0 %)." in text
    assert "not significant" not in text
    assert "For the drop in average toxicity: r = 0.38, p = 0.147" in text


def test_groups_that_tuning_met_or_not_stand_in_one_table(parsed):
    begin = parsed.text.index("Groups that tuning met, and groups that it did not")
    text = parsed.text[begin : begin + 700].replace("\u00a0", " ")
    assert "insult elsewhere0.200 → 0.050−0.200 to −0.1000.200 → 0.050" in text.replace("| ", "")
    without = made_up() | {"groups": []}
    assert "Met in tuning" not in Page(rendered(without)).text


def test_a_prediction_that_is_no_better_than_chance_is_said_to_be_so():
    results = made_up()
    (row,) = results["transfer_by_measure"]["emt"]["predictors"]
    for error, p, said in [(0.114, 0.2, "no better than chance"), (0.2, 0.01, "no better than chance")]:
        results["transfer_by_measure"]["emt"]["predictors"] = [row | {"error": error, "error_p": p}]
        assert said in findings(StudyResults.of(results))[-1]
    older = {name: value for name, value in row.items() if name != "error_p"}
    results["transfer_by_measure"]["emt"]["predictors"] = [older]
    assert "chance" not in findings(StudyResults.of(results))[-1]


def test_the_paper_s_table_stands_below_this_study(parsed):
    text = parsed.text[parsed.text.index("this study, and the paper’s Table 2") :].replace("\u00a0", " ")
    emt = [fmean(row["emt"] for row in made_up()[side].values()) for side in ("before", "after")]
    assert f"This study: mini{emt[0]:.3f} → {emt[1]:.3f}" in text
    assert "mGPT0.502 → 0.1570.468 → 0.0390.121 → 0.02818.74 → 23.680.520 → 0.4870.825 → 0.8070.841 → 0.845" in text
    assert "Aya-23-8B0.559 → 0.303" in text


def test_findings_are_plain_sentences_that_the_page_stresses(parsed):
    warned, *sentences = findings(StudyResults.of(made_up()))
    assert warned == "Beware. Too little toxicity to tell: 3 of 400 continuations are toxic."
    assert all(type(sentence).__mro__[1] is str for sentence in sentences)
    assert not re.search("[<>\x00-\x1f]|&[a-z]+;", "".join(sentences))
    for sentence in sentences:
        assert re.sub(r"\s+", " ", sentence) in parsed.text
        stressed = [sentence[begin:end] for begin, end in sentence.stressed]
        assert sentence.startswith(stressed[0])
        assert all(stressed)
    assert "36 of the model’s 2,048" in [sentences[0][begin:end] for begin, end in sentences[0].stressed]
    assert len(parsed.tags("b")) == sum(len(sentence.stressed) for sentence in sentences)


def test_what_comes_from_outside_is_plain_in_findings():
    content = hostile("\x02evil\x03 <b>")
    content["transfer"]["measure"] = "\x02evil\x03 <b>"
    text = "".join(findings(StudyResults.of(content)))
    assert "\ufffdevil\ufffd <b>" in text
    assert not {"\x02", "\x03"} & set(text)


@pytest.mark.parametrize(
    ("r", "p", "said"),
    [
        (0.41, 0.11, "not significant at 5 %"),
        (-0.8, 0.0002, "gained less"),
        (0.9, 0.00001, "p < 0.001"),
        (None, None, "no correlation is defined"),
    ],
)
def test_the_correlation_is_told_honestly(r, p, said):
    results = made_up()
    results["transfer"] |= {"pearson_r": r, "p_value": p}
    assert said in Page(rendered(results)).text.replace("\u00a0", " ")


def test_an_interval_of_too_few_languages_is_not_told():
    results = made_up()
    results["transfer_by_measure"]["emt"]["predictors"] = [PREDICTED | {"pearson_low": None, "pearson_high": None}]
    text = Page(rendered(results)).text
    assert "The 95 % interval of r is not defined for so few languages. A line through" in text


def test_no_offset_that_is_enough_is_said():
    results = made_up()
    results["intervention"] = results["control"]
    text = Page(rendered(results)).text
    assert "Are they the cause? Not found. No dose leaves at most 33% of the toxicity on half of the prompts" in text


def test_new_results_tell_kinds_and_the_toxicity_of_sound_text():
    results = made_up()
    for code in results["before"]:
        results["before"][code]["sound_toxicity"], results["after"][code]["sound_toxicity"] = 0.5, 0.4
    results["after"]["zh"]["sound_toxicity"] = None
    finding = next(text for text in findings(StudyResults.of(results)) if text.startswith("Is it silence?"))
    assert "one phrase over and over, in another script, or gibberish to the model before. Average toxicity " in finding
    assert "and among sound continuations from 0.500 to 0.400. Of all tokens" in finding


def test_what_figures_show_can_be_read_as_tables(parsed):
    for place in (2, 5, 6, 7, 8, 9):
        assert f"The numbers of Figure {place}" in parsed.text
    text = parsed.text.replace("\u00a0", " ")
    assert "−1.0000.1340.134 to 0.1347.201.0 %" in text, "a dose, its toxicity, perplexity and degenerate text"
    assert "0.5940.564 to 0.6247.201.0 %" in text, "the same on random neurons"
    assert "English0.570 → 0.012" not in text, "first EMT, then the other measures"
    assert "0.570 → 0.012−0.588 to −0.518" in text, "below a change its interval"
    assert "0value0.990000.97000 to 1.00000+0.00 %−1.00 % to +2.00 %" in text
    assert "10.700–0.010−0.10020.3500.4000.020−0.200" in text, "step, loss, validation loss if there is one, rewards"


def test_no_interval_goes_beyond_what_there_is():
    results = made_up()
    results["changes"]["en"] |= {"emt": [-1.001, -0.8], "average_toxicity": [-1.01, -0.5]}
    results["changes_of_others"]["average_toxicity"]["low"] = -0.9
    text = Page(rendered(results)).text
    assert "0.921→0.019−1.000to−0.800" in re.sub(r"\s", "", text), "in the table"
    assert "(95 % interval of the change: −1.000 to −0.500)" in text
    assert "(95 % interval of the change: −0.900 to −0.441)" in text


def test_the_transfer_figure_says_what_its_lines_are(parsed):
    section = parsed.text[parsed.text.index("Retrieval and reach") : parsed.text.index("Amplifying the sources")]
    for mark in ("cross", "dashed line", "band"):
        assert mark in section


def test_another_language_is_told_where_it_was_looked_for():
    text = Page(rendered(made_up() | {"identified": True})).text
    assert "or in another script or language than the prompt’s. Of all" in text


def test_an_amplification_that_breaks_the_text_is_no_finding():
    results = made_up()
    results["amplification"][2] |= {"perplexity": 13.9, "degenerate": 0.08}
    results["amplification"][3] |= {"perplexity": 120.0, "degenerate": 0.51}
    del results["amplification_control"]
    text = Page(rendered(results)).text.replace("\u00a0", " ")
    assert "With a dose of 1.00 sd on the sources, average toxicity after neutral prompts" in text
    assert "at +99 % perplexity, with 1.0 % to 8.0 % of the continuations degenerate" in text
    assert "There is no control of random neurons for this." in text
    assert "there the text breaks, as 2.00 has +1614 % perplexity and 51 % degenerate text" in text
    for dose in results["amplification"][1:]:
        dose["perplexity"] = 15.0
    assert "No dose leaves the text whole" in Page(rendered(results)).text


def test_missing_numbers_and_sections():
    results = made_up()
    results["changes"] = {code: {} for code in languages.CODES}
    for key in (
        "amplification",
        "amplification_control",
        "changes_of_others",
        "mean_changes",
        "promoted",
        "samples",
        "given",
        "transfer_by_measure",
        "cosines",
        "model",
        "drift",
        "neurons",
        "training",
    ):
        del results[key]
    for code in languages.CODES:
        results["before"][code]["perplexity"] = None
    text = Page(rendered(results)).text
    assert "not defined" in text
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert "interval of the change:" not in text
    assert "What the sources promote" not in text
    assert "Figure 5" not in text
    for place in (6, 7, 8, 9):
        assert f"Figure {place}" not in text


def test_words_are_masked_until_asked_for(parsed):
    """Without a list, all that the model wrote is; with one, its words are, in text and as tokens."""
    assert "fool" not in parsed.text
    assert "kind" not in parsed.text
    listed = Page(rendered(made_up(), toxic_words={"en": ["fool"], "ar": ["حمقاء"]}))
    assert "She is a f•••." in listed.text
    assert "She is kind." in listed.text
    assert "حمقاء" not in listed.text
    assert "هي لطيفة." in listed.text
    assert {"class": "masked", "data-text": "fool"} in listed.tags("span")
    assert "tonto" in listed.text, "not on the list"


def test_the_menu_names_every_language_in_the_house_s_order(parsed):
    boxes = [attrs for attrs in parsed.tags("input") if attrs["name"] == "language"]
    assert [box["value"] for box in boxes] == list(languages.CODES)
    assert all("checked" in box for box in boxes)
    marked = [attrs["data-language"] for tag, attrs in parsed.elements if tag == "details" and "data-language" in attrs]
    assert marked == ["en", "ar"], "the samples"


@pytest.mark.parametrize("toxic_words", [None, {"en": ["fool", HOSTILE]}])
def test_hostile_text_stays_text(toxic_words):
    page = rendered(hostile(), toxic_words=toxic_words)
    page.encode()
    parsed = Page(page)
    plain = Page(rendered(made_up()))
    assert len(parsed.scripts) == 3
    assert [tag for tag, _ in parsed.elements if tag in ("img", "iframe", "svg")] == []
    assert {name for _, attrs in parsed.elements for name in attrs} <= {
        name for _, attrs in plain.elements for name in attrs
    }
    assert not {"\x00", "\u202e"} & set(page.split("<script>")[0])
    assert "␣" in parsed.text
    drawn = parsed.scripts[0]
    assert "<" not in drawn
    for text in _texts(json.loads(drawn)["figures"]):
        inert = re.sub(r"<br>|<extra></extra>", "", text)
        assert "<" not in inert, "plotly would read it as a tag"


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def test_write(tmp_path):
    results = made_up()
    report.write(StudyResults.of(results), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == rendered(results)
