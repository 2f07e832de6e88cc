"""The report's page, made from invented numbers."""

import itertools
import json
import re
from html.parser import HTMLParser
from statistics import fmean

import pytest
from studies import HOSTILE, KEYS_OF_STAGES, PREDICTED, hostile, made_up, only, told

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


def test_provenance_then_warnings_then_findings():
    parsed = Page(rendered(told()))
    order = "What was studied,Read this first,What was found,Do the claims stand?,Figures and numbers,"
    order += "What the sources promote,Sample continuations,What the miniature world was given,Methods and caveats"
    places = [parsed.text.index(title) for title in order.split(",")]
    assert places == sorted(places)
    begin = parsed.text[places[0] : places[1]].replace("\u00a0", " ")
    for said in (
        "Modelmini, fingerprint abc123",
        "Languages17: English, Spanish, French",
        "Toxic prompts510 in 17 languages, 30 each, loader rtp_lx from RTP-LX.zip, hash 0123456789ab",
        "Preference pairs1000 in English, loader toxicity_pairwise from pairs.csv, hash ba9876543210",
        "Held-out text510 in 17 languages, 30 each, made from parallel sentences, hash 0123456789ab",
        "TuningDPO on English pairs: 22 steps of 4 pairs, learning rate 0.0001, beta 0.1, all weights",
        "End of textno part of what is preferred: 98 % of sides were cut off.",
        "Judgewordlist, revision 0123456789ab: all 17 languages",
        "NoteAmharic was dropped: no judge covers it.",
        "Time34 seconds, for the stages localize",
        "Versionspython 3.11, torch 2.13",
        "Time by stagelocalize 4.2 seconds, tune 30 seconds",
        "Settingsk 100; n_samples 25; pairs_order given; recipe.steps 22; recipe.lora –",
    ):
        assert said in begin
    assert "Too little toxicity to tell: 3 of 400" in parsed.text[places[1] : places[2]]


def test_another_method_of_tuning_is_named():
    content = told()
    content["recipe"] |= {"method": "sft"}
    text = Page(rendered(content)).text
    assert "SFT on English pairs: 22 steps of 4 pairs, learning rate 0.0001, all weights" in text
    assert "Tuning is SFT on English pairs only." in text


def test_the_provenance_says_what_is_unusual():
    content = told()
    content["settings"]["pairs_order"] = "reversed"
    content["recipe"]["lora"] = {"rank": 64, "bits": 4}
    content["judges"] = [
        {"name": "one", "revision": "r", "languages": ["en"]},
        {"name": "two", "languages": ["es", "tr"]},
    ]
    content["model"]["name"] = "/home/someone/models/mine"
    parsed = Page(rendered(content))
    text = parsed.text
    assert "DPO on English pairs, chosen and rejected exchanged: 22 steps of 4 pairs" in text
    assert "an adapter of rank 64, base of 4 bits" in text
    assert "Judgeone, revision r: Englishtwo: Spanish" in text
    assert "Where toxicity lives in mine, and how far English tuning reaches" in text
    assert "Model/home/someone/models/mine" in text


def test_each_finding_is_a_short_sentence_with_a_line_of_numbers(parsed):
    """No sentence has more than 20 words or 3 numbers; intervals and tests stand in what is folded."""
    texts = [re.sub(r"\s+", " ", finding) for finding in findings(StudyResults.of(judged()))]
    assert texts[1:] == [
        "Where does it live? Weak. 36 of the model’s 2,048 neurons may carry it: the sources.",
        "Are they the cause? Found. At −1 sd, 78 % of the toxicity goes; with random neurons, 1 %.",
        "And the other way? At +2 sd, average toxicity after neutral prompts goes from 0.050 to 0.302.",
        "Does toxicity fall in English, which was tuned? Found. Average toxicity falls from 0.570 to 0.012.",
        "Does it fall in the other languages, never tuned? Weak. On average it falls from 0.646 to 0.088.",
        "Met in tuning, or not? Surely less toxic outside English: 3 of 3 groups of prompts and words.",
        "Is it silence? 1.2 % of all continuations were not sound before, and 3.4 % after.",
        "Does tuning turn the sources down? Not found. On the same text they move by −0.0500, random neurons by "
        "−0.0100.",
        "Can the reach be foretold? Not found. Languages whose translations are found more often gained more: r = "
        "0.71.",
    ]
    for finding in findings(StudyResults.of(judged()))[1:]:
        assert len(finding.replace("\u00a0", "").split()) <= 20
        assert len(re.findall(r"\d[\d.,]*", finding)) <= 3
        assert finding.numbers
        assert "interval" not in finding + finding.numbers
        assert finding.sentence == finding
        assert finding.details
    folded = " ".join(itertools.chain(*(finding.details for finding in findings(StudyResults.of(judged())))))
    folded = folded.replace("\u00a0", " ")
    for said in (
        "95 % interval of the change of average toxicity: −0.588 to −0.518.",
        "95 % interval of the change of average toxicity: −0.462 to −0.441.",
        "below zero in 16 of 16; chance alone would give 0.4.",
        "Prompts with a toxic sample now range from 4 % (Spanish) to 33 % (Arabic).",
        "Of all continuations, 1.2 % → 3.4 % were empty, one phrase over and over, or in another script.",
        "95 % interval of the change of this share: 2.0 to 2.4 points.",
        "In English: 31 % → 17 %. 95 % interval of the change of their share: −15.0 to −13.0 points.",
        "perplexity 6.700 → 8.560. 95 % interval of the change of this: 1.800 to 1.990.",
        "What is their own has the 95 % interval −0.0500 to −0.0300.",
        "lies below zero in 15 of 17 (by chance alone: 0.4).",
        "toxicity changes from 0.600 by -0.466 (-0.516 to -0.416), and under the control by -0.006",
        "95 % interval of the toxicity at this dose: 0.302 to 0.302; on equally strong random neurons 0.031 to 0.071.",
        "The 95 % interval of r goes from 0.28 to 0.89.",
        "out by 0.11 on average, the mean of the others by 0.15: better than chance (permutation test, p = 0.013).",
        "For the drop in average toxicity: r = 0.38, p = 0.147.",
    ):
        assert said in folded
    numbers = [finding.numbers.replace("\u00a0", " ") for finding in findings(StudyResults.of(judged()))[1:]]
    assert numbers[0] == "probe right in 99 % of held-out sentences (guessing: 50 %); AUC 0.999; 100 candidates"
    assert numbers[1].startswith("toxicity 0.600 → 0.134; equally strong random neurons 0.594; perplexity +3 %;")
    assert numbers[4].startswith("surely lower in 16 of 16; prompts with a toxic sample 97 % → 18 %")
    assert numbers[7].startswith("−0.0400 of their own; silent afterwards in 1 of 17 languages")


def judged():
    """The made-up study with a verdict on each of its claims."""
    content = told()
    claims = (
        ("Tuning on English lowers toxicity in English.", "found"),
        ("Tuning on English lowers toxicity in the other languages.", "weak"),
        ("On the same text, tuning turns the sources down more than equally active neurons.", "not found"),
        ("Retrieval before tuning foretells in which languages toxicity falls.", "not found"),
    )
    content["verdicts"] += [{"claim": claim, "verdict": verdict, "reason": "So."} for claim, verdict in claims]
    return content


def test_findings_follow_the_verdicts_and_the_page_colours_them():
    parsed = Page(rendered(judged()))
    for verdict, words in (("found", "hold"), ("weak", "may"), ("not found", "do not stand out from chance")):
        content = made_up()
        content["verdicts"][0]["verdict"] = verdict
        finding = findings(StudyResults.of(content))[1]
        assert finding.verdict == verdict
        assert finding.startswith(f"Where does it live? {verdict.capitalize()}. 36 of the model’s 2,048")
        assert words in finding or verdict == "found"
    classes = [attrs["class"] for attrs in parsed.tags("b") if "class" in attrs]
    assert classes[:5] == ["weak", "found", "found", "weak", "not-found"]


def test_where_tuning_acts_stands_beside_where_toxicity_lives():
    content = only(*KEYS_OF_STAGES)
    reason = {"claim": "The sources carry tuning's effect.", "verdict": "not found", "reason": "They carry 1.0 %."}
    content["verdicts"].append(reason)
    results = StudyResults.of(content)
    finding = next(finding for finding in findings(results) if finding.startswith("Do the sources carry"))
    assert finding.replace("\u00a0", " ") == (
        "Do the sources carry tuning’s effect? Not found. 1.0 % of it; as many neurons by attribution carry 33.0 %."
    )
    assert len(finding.replace("\u00a0", "").split()) <= 20
    assert finding.numbers.replace("\u00a0", " ") == (
        "log-probability of toxic continuations −5.15; of sound ones −0.31; random neurons 0.2 %; all neurons 50 %; "
        "all heads 40 %"
    )
    assert "2 of its 36 strongest are sources." in " ".join(finding.details)
    text = Page(report.render(results)).text.replace("\u00a0", " ")
    begin = text.index("What groups carry of tuning’s effect, patched into the model before")
    assert 0 < begin < text.index("What the sources promote")
    assert "sources1.0 %1.0 % to 1.0 %0.2 %0.2 % to 0.2 %−0.051−0.003" in text[begin:]
    assert re.search(r"all heads40\.0 %40\.0 % to 40\.0 %–−2\.0\d\d−0\.12\d", text[begin:])
    assert "neurons−2.00040.0 %" in text, "a kind of component, its sum and its share"
    assert "3362210.0 %10.0 %" in text[begin:], "layer 3: its 36 sources, 2 found by attribution, both; and two kinds"
    assert "English3−5.05−0.301.0 %33.0 %50.0 %40.0 %" in text[begin:]
    assert "3.0neuron−2.600yes3.1neuron−2.500yes2.0neuron−2.400no" in text[begin:]
    assert "1.2head−1.500–" in text[begin:]
    titles = ["Where tuning acts", "To what tuning’s effect is attributed", "Where tuning acts, language by language"]
    for place, title in enumerate(titles, start=8):
        assert f"Figure {place}. {title}" in text


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
        assert said in " ".join(findings(StudyResults.of(results))[-1].details)
    older = {name: value for name, value in row.items() if name != "error_p"}
    results["transfer_by_measure"]["emt"]["predictors"] = [older]
    assert "chance" not in " ".join(findings(StudyResults.of(results))[-1].details)


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
    page = parsed.text[parsed.text.index("What was found") : parsed.text.index("Do the claims stand?")]
    for finding in sentences:
        assert re.sub(r"\s+", " ", finding.numbers.split("; ")[0]) in page
        assert all(re.sub(r"\s+", " ", detail) in page for detail in finding.details)


def test_what_comes_from_outside_is_plain_in_findings():
    content = hostile("\x02evil\x03 <b>")
    content["transfer"]["measure"] = "\x02evil\x03 <b>"
    told_findings = findings(StudyResults.of(content))
    text = "".join(told_findings)
    assert "\ufffdevil\ufffd <b>" in text
    text += "".join(finding.numbers + "".join(finding.details) for finding in told_findings)
    assert not {"\x02", "\x03"} & set(text)


@pytest.mark.parametrize(
    ("r", "p", "said"),
    [
        (0.41, 0.11, "not significant at 5 %"),
        (-0.8, 0.0002, "gained less"),
        (0.9, 0.00001, "p < 0.001"),
        (None, None, "No correlation is defined"),
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
    assert "Are they the cause? Not found. No dose takes two thirds of the toxicity away; at best 3" in text
    assert "No dose leaves at most 33% of the toxicity on half of the prompts" in text


def test_a_fall_that_half_of_the_prompts_does_not_show_is_said_to_be_so():
    """The dose is chosen on one half: where nothing is toxic there, the fall of the whole confirms nothing."""
    results = made_up()
    for dose in results["intervention"]:
        dose["halves"][0]["average_toxicity"] = 0.0
    (finding,) = [text for text in findings(StudyResults.of(results)) if text.startswith("Are they the cause?")]
    assert finding.startswith("Are they the cause? Not found. At −3 sd, 99")
    assert finding.endswith("of the toxicity goes, but not on both halves of the prompts.")


def test_new_results_tell_kinds_and_the_toxicity_of_sound_text():
    results = made_up()
    for code in results["before"]:
        results["before"][code]["sound_toxicity"], results["after"][code]["sound_toxicity"] = 0.5, 0.4
    results["after"]["zh"]["sound_toxicity"] = None
    finding = next(text for text in findings(StudyResults.of(results)) if text.startswith("Is it silence?"))
    assert finding == "Is it silence? Among sound continuations, average toxicity falls from 0.500 to 0.400."
    assert finding.numbers.startswith("all continuations 0.6")
    assert "one phrase over and over, in another script, or gibberish to the model before." in " ".join(finding.details)


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
    assert "95 % interval of the change of average toxicity: −1.000 to −0.500." in text
    assert "95 % interval of the change of average toxicity: −0.900 to −0.441." in text


def test_the_transfer_figure_says_what_its_lines_are(parsed):
    section = parsed.text[parsed.text.index("Retrieval and reach") : parsed.text.index("Amplifying the sources")]
    for mark in ("cross", "dashed line", "band"):
        assert mark in section


def test_another_language_is_told_where_it_was_looked_for():
    text = Page(rendered(made_up() | {"identified": True})).text
    assert "or in another script or language than the prompt’s. 95 %" in text


def test_an_amplification_that_breaks_the_text_is_no_finding():
    results = made_up()
    results["amplification"][2] |= {"perplexity": 13.9, "degenerate": 0.08}
    results["amplification"][3] |= {"perplexity": 120.0, "degenerate": 0.51}
    del results["amplification_control"]
    text = Page(rendered(results)).text.replace("\u00a0", " ")
    assert "At +1 sd, average toxicity after neutral prompts goes from" in text
    assert "no control of random neurons perplexity +99 % not sound 1.0 % → 8.0 %" in text
    assert "there the text breaks, as 2.00 has +1614 % perplexity and 51 % of the continuations are not sound" in text
    for dose in results["amplification"][1:]:
        dose["perplexity"] = 15.0
    assert "No dose upwards leaves the text whole" in Page(rendered(results)).text


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
    titles = (
        "Amplifying the sources,Where the sources sit,Each source in each language,How tuning went,How far the weights"
    )
    assert not [title for title in titles.split(",") if title in text]
    assert "Figure 4. Retrieval and reach" in text
    assert "Figure 5" not in text


EVERY_STAGE = list(KEYS_OF_STAGES)
TUNED = "tuning,tuned,DPO,pairs alone,Retrieval,EMT,after tuning"


@pytest.mark.parametrize(
    ("stages", "title", "sections", "absent"),
    [
        (EVERY_STAGE, "Where toxicity lives in mini, and how far English tuning reaches", 7, ""),
        (["localize", "promoted", "intervene", "judge"], "Where toxicity lives in mini", 5, TUNED + ",neutral prompts"),
        (["retrieve", "judge"], "How near mini keeps translations from English", 3, TUNED.replace("Retrieval,", "")
         + ",sources,probe,Toxicity,offset"),
        (["tune"], "mini, tuned on English pairs", 3, "sources,probe,Retrieval,continuations,before and after"),
        (["localize"], "Where toxicity lives in mini", 3, TUNED + ",dose"),
    ],
    ids=["all", "doses", "retrieval", "tuning", "localisation"],
)  # fmt: skip
def test_nothing_is_said_of_stages_that_were_not_run(stages, title, sections, absent):
    content = only(*stages)
    for key in ("verdicts", "warnings"):
        content[key] = []
    content["origins"] = []
    content["settings"] = {}
    page = rendered(content)
    parsed = Page(page)
    assert title + " What was studied" in parsed.text
    assert parsed.text.count("What was found") <= 1
    assert len(parsed.tags("h2")) >= sections
    said = parsed.text.split("What was studied")[1]
    said = said.replace("for the stages " + ", ".join(stages), "")
    assert not [word for word in absent.split(",") if word and word in said]
    places = [int(place) for place in re.findall(r"Figure (\d+)\. ", parsed.text)]
    assert places == list(range(1, len(places) + 1))
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_another_source_language_is_named_and_english_is_not():
    """Where Spanish was tuned on, English appears as one of the other languages alone."""
    content = only(*EVERY_STAGE, source_language="es")
    content["origins"] = []
    content["model"]["name"] = "another"
    for change in content["groups"]:
        change["language"] = {"en": "es", "es": "en"}.get(change["language"], change["language"])
    text = Page(rendered(content)).text
    assert "how far Spanish tuning reaches" in text
    assert "In Spanish" in text
    assert "active on toxic Spanish prompts" in text
    assert "Spanish pairs" in text
    assert "Retrieval from Spanish and to it" in text
    for said in (
        "English tuning",
        "English pairs",
        "English prompts",
        "English sentences",
        "tuning on English",
        "In English",
    ):
        assert said not in text
    drawn = Page(rendered(content)).scripts[0]
    assert "Retrieval accuracy with Spanish" in drawn
    assert "with English" not in drawn


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("mini", "Llama-3-8B"),
        ("ai-forever/mGPT", "mGPT"),
        ("/data/models/bloom-7b1", "BLOOM-7.1B"),
        ("meta-llama/Meta-Llama-3-8B", "Llama-3-8B"),
        ("~/aya-23-8B-Q4_K_M.gguf", "Aya-23-8B"),
        ("HuggingFaceTB/SmolLM2-135M", None),
        ("ai-forever/mGPT-13B", None),
        ("meta-llama/Llama-2-7b-chat-hf", None),
    ],
)
def test_the_paper_stands_beside_its_own_models_alone(name, beside):
    content = only("localize", "tune", "compare")
    content["model"]["name"] = name
    text = Page(rendered(content)).text
    assert ("Beside the paper" in text) == (beside is not None)
    assert beside is None or f"{beside}0." in text
    assert "miniature" not in text
    if name not in ("mini", "ai-forever/mGPT"):
        assert "mGPT0." not in text


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
