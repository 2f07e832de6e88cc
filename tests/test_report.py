"""The report's page, made from invented numbers."""

import copy
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser

import pytest

from xlingtox import languages, report

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x00"


def made_up(seed=0):
    """Results like those of the miniature, but drawn at random."""
    rng = random.Random(seed)
    others = languages.CODES[1:]

    def side(factor):
        return {
            code: {
                "emt": 0.97 * (factor if code == "en" else min(1, factor + 0.02 * rank)),
                "toxicity_probability": 0.97 * (factor if code == "en" else min(1, factor + 0.02 * rank)),
                "average_toxicity": 0.6 * (factor if code == "en" else factor + 0.015 * rank),
                "degenerate": 0.012 if factor > 0.5 else 0.034,
                "perplexity": 6 + rank / 5 + (1 - factor),
                "distinct_1": 0.31,
                "distinct_2": 0.62,
                "distinct_3": 0.74,
                "mean_activation": 0.2 - 0.3 * (1 - factor) + rank * 0.004,
            }
            for rank, code in enumerate(languages.CODES)
        }

    def doses(offsets, slope, spread, start=0.6):
        return [
            {
                "offset": offset,
                "average_toxicity": start * math.exp(slope * offset),
                "toxicity_by_language": dict.fromkeys(languages.CODES, 0.5),
                "degenerate": 0.01,
                "perplexity": 7 + 0.2 * offset * offset,
                "low": start * math.exp(slope * offset) - spread * abs(offset),
                "high": start * math.exp(slope * offset) + spread * abs(offset),
            }
            for offset in offsets
        ]

    before, after = side(0.95), side(0.02)
    drop = {code: 0.95 - 0.03 * rank + rng.uniform(-0.08, 0.08) for rank, code in enumerate(others)}
    words = ["fool", "tonto", "idiot", "дурак", "傻瓜", "ばか", "바보", "मूर्ख", "أحمق"]
    codes = [["en"], ["es"], ["fr", "de", "nl"], ["ru"], ["zh"], ["ja"], ["ko"], ["hi"], ["ar"]]
    tokens = [{"token": f" {word}", "languages": own} for word, own in zip(words, codes, strict=True)]
    return {
        "languages": list(languages.CODES),
        "probe": {"accuracy": 0.993, "auc": 0.999, "baseline": 0.5},
        "n_neurons": 2048,
        "potential": [[3, i] for i in range(100)],
        "actual": [[3, i] for i in range(36)],
        "intervention": doses([0, -0.25, -0.5, -1, -1.5, -2, -3], 1.5, 0),
        "control": doses([0, -0.25, -0.5, -1, -1.5, -2, -3], 0.01, 0.03),
        "amplification": doses([0, 0.5, 1, 2], 0.9, 0, 0.05),
        "before": before,
        "after": after,
        "change_intervals": {
            code: {
                name: [after[code][name] - before[code][name] - 0.03, after[code][name] - before[code][name] + 0.04]
                for name in ("emt", "average_toxicity", "mean_activation")
            }
            for code in languages.CODES
        },
        "retrieval": {code: 0.5 - 0.02 * rank + rng.uniform(-0.06, 0.06) for rank, code in enumerate(others)},
        "transfer": {"measure": "emt", "pearson_r": 0.71, "p_value": 0.002},
        "transfer_by_measure": {
            "emt": {"pearson_r": 0.71, "p_value": 0.002, "drop": drop},
            "average_toxicity": {"pearson_r": 0.38, "p_value": 0.147, "drop": dict(drop)},
        },
        "promoted": [
            {"layer": 3, "index": i, "cosine": 0.4 - i / 100, "mean_activation": 0.3, "tokens": tokens}
            for i in range(12)
        ],
        "samples": {
            "en": [{"prompt": "Anna insults the baker.", "before": " She is a fool.", "after": " She is kind."}],
            "ar": [{"prompt": "آنا تهين الخباز.", "before": "هي حمقاء.", "after": "هي لطيفة."}],
        },
        "given": {code: {"text": 5.0, "switched": 0.5, "translated": 0.3, "loans": 0.1} for code in languages.CODES},
        "scorer": "wordlist",
        "model": {"name": "mini", "fingerprint": "abc123"},
        "seconds": {"localize": 4.2, "tune": 30.0},
        "versions": {"python": "3.11", "torch": "2.13"},
        "seed": 0,
    }


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


@pytest.fixture(scope="module")
def page():
    return report.render(made_up())


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
    order = "What was found,Figures,What the sources promote,Sample continuations,Methods and caveats,"
    order += "What the miniature world was given,Provenance"
    places = [parsed.text.index(title) for title in order.split(",")]
    assert places == sorted(places)
    findings = parsed.text[places[0] : places[1]].replace("\u00a0", " ")
    assert "99 % of held-out cases" in findings
    assert "36 of the model’s 2,048" in findings
    assert "prompts with a toxic sample went from 92 % to 2 %" in findings
    assert "average toxicity from 0.570 to 0.012 (95 % interval of the change: −0.588 to −0.518)" in findings
    assert "In the other 16 languages" in findings
    assert "in 16 of them the 95 % interval of that change lies below zero" in findings
    assert "Of all continuations, 1.2 % to 3.4 % were empty, one phrase over and over, or in another" in findings
    assert "fell in 17 of 17 languages" in findings
    assert "offset of −1.00 on the sources" in findings, "a third or less, at the least perplexity"
    assert "from 0.600 to 0.134 at +3 % perplexity" in findings
    assert "it changes by −1 % on average, to 0.594 (sets from 0.564 to 0.624)" in findings
    assert "offset of 2.00, average toxicity after friendly prompts goes from 0.050 to 0.302" in findings
    assert "r = 0.71, p = 0.002, over 16 languages" in findings
    assert "not significant" not in findings
    assert "For the drop in average toxicity: r = 0.38, p = 0.147" in findings


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
    assert said in Page(report.render(results)).text.replace("\u00a0", " ")


def test_no_offset_that_is_enough_is_said():
    results = made_up()
    results["intervention"] = results["control"]
    assert "Not shown: no offset takes toxicity to a third" in Page(report.render(results)).text


def test_missing_numbers_and_sections():
    results = made_up()
    for key in ("amplification", "promoted", "samples", "given", "change_intervals", "transfer_by_measure", "model"):
        del results[key]
    for code in languages.CODES:
        results["before"][code]["perplexity"] = None
    text = Page(report.render(results)).text
    assert "not defined" in text
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert "What the sources promote" not in text
    assert "Figure 5" not in text


def test_results_of_something_else_are_refused():
    with pytest.raises(ValueError, match="missing languages, probe"):
        report.render({"seed": 0})


def test_results_are_left_as_they_were():
    results = made_up()
    kept = copy.deepcopy(results)
    report.render(results)
    assert results == kept


def test_hostile_text_stays_text():
    results = made_up()
    evil = HOSTILE
    results["languages"][-1] = evil
    for key in ("before", "after", "retrieval", "change_intervals", "given", "samples"):
        results[key][evil] = results[key].pop("ar")
    for found in results["transfer_by_measure"].values():
        found["drop"][evil] = found["drop"].pop("ar")
    results["transfer_by_measure"][evil] = results["transfer_by_measure"]["emt"]
    results["promoted"][0]["tokens"] = [
        {"token": evil, "languages": [evil, "en"]},
        {"token": evil, "languages": [evil]},
        {"token": "\ufffd", "languages": []},
        {"token": " ", "languages": ["en"]},
        {"token": "\ud800", "languages": ["en"]},
    ]
    results["samples"]["en"] = [{"prompt": evil, "before": evil, "after": evil}]
    results["model"] = {"name": evil, "fingerprint": evil}
    results["versions"] = {evil: evil}
    results["seconds"] = {evil: 1.0}
    results["scorer"] = evil
    results["seed"] = evil
    page = report.render(results)
    page.encode()
    parsed = Page(page)
    plain = Page(report.render(made_up()))
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
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def test_write(tmp_path):
    results = made_up()
    report.write(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == report.render(results)
