"""Several judges in one study: each judges the same texts, and every claim is stated under each."""

import dataclasses
import json

import pytest
from guards import PREFIX, VERDICTS, guard
from studies import made_up
from test_report import Page

from xlingtox.scoring import ScorerIdentity
from xlingtox.study import Study, StudyResults, findings, report, under_judges
from xlingtox.study.second_opinion import SecondOpinion
from xlingtox.study.settings_file import BadSettings
from xlingtox.verdicts import Verdict

COVERED = ("en", "de")


@pytest.fixture(scope="module")
def results():
    return StudyResults.of(made_up())


def test_a_claim_that_holds_under_one_judge_only_is_said_first(results):
    name = "Tuning on English lowers toxicity in English."
    verdicts = [Verdict(name, "found", "It fell."), Verdict("Another.", "weak", "")]
    against = SecondOpinion(
        ScorerIdentity("<b>guard</b>", "1", COVERED),
        COVERED,
        verdicts=(Verdict(name, "not found", "It rose."), Verdict("Another.", "weak", "")),
        warnings=("Too little.",),
    )
    first = results.comparison.scorer.name
    told = under_judges.warnings(first, [dataclasses.asdict(row) for row in verdicts], [against])
    assert told == [f"This holds under one judge only, {first}, and not under <b>guard</b>: {name}"]
    told_of = {"verdicts": tuple(verdicts), "second_opinions": (against,), "warnings": tuple(told)}
    results = dataclasses.replace(results, **told_of)
    finding = findings(results)[-1]
    assert finding.sentence == (
        "Does another judge say the same? Under <b>guard</b>, 1 of 2 claims keep their verdict."
    )
    assert told[0] in finding.details
    assert "<b>guard</b> judged English, German only." in finding.details
    assert "Under <b>guard</b>: Too little." in finding.details
    page = report.render(results)
    assert "<b>guard</b>" not in page
    text = " ".join(Page(page).text.split())
    assert text.index("This holds under one judge only") < text.index("What was found")
    assert "Under each judge" in text
    assert "Second judge" in text


# --- in a settings file

FILE = """
[model]
source = "mini"
[data]
languages = ["en", "es"]
per_language = 2
prompts = {loader = "mini.prompts"}
[judge]
kind = "mini"
"""


def test_a_guard_and_a_list_as_second_judges(tmp_path):
    model, tokenizer = guard("qwen3")
    model.save_pretrained(tmp_path / "guard")
    tokenizer.save_pretrained(tmp_path / "guard")
    (tmp_path / "study.toml").write_text(
        f'{FILE}[[second_judge]]\nkind = "guard"\npath = "guard"\nlanguages = ["en", "es"]\nleast_mass = 0\n'
        f"prefix = {json.dumps(PREFIX)}\n"
        f"verdicts = {{{', '.join(f'{name} = {json.dumps(word)}' for name, word in VERDICTS.items())}}}\n"
        '[[second_judge]]\nkind = "wordlist"\nwords = {en = ["fool"]}\n'
    )
    materials = Study.from_toml(tmp_path / "study.toml").materials()
    of_guard, of_list = materials.second_judges
    assert of_guard.name.endswith("guard, harm of continuations")
    assert 0 < of_guard.score(["you fool"], ["es"])[0] < 1
    assert materials.scorer.name == "miniature's insults"
    assert of_list.languages == {"en"}
    assert materials.notes[-1] == (
        "The second judge wordlist does not cover Spanish (es): nothing is said there under it."
    )


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ('[second_judge]\nkind = "guardd"\n', '[second_judge] kind is "guardd": there is no such judge: did you mean'),
        ("second_judge = 3\n", "[second_judge] is 3: write a section [second_judge] with kind ="),
        ('[[second_judge]]\nkind = "mini"\n[[second_judge]]\npath = 1\n', "[second_judge] 2: kind is missing: write"),
        ('[second_jugde]\nkind = "mini"\n', "[second_jugde] is no known key: did you mean second_judge?"),
    ],
)
def test_mistakes_in_a_second_judge_are_named(tmp_path, section, line):
    content = section + FILE if section.startswith("second_judge") else FILE + section
    (tmp_path / "study.toml").write_text(content)
    with pytest.raises(BadSettings) as caught:
        Study.from_toml(tmp_path / "study.toml")
    assert f"study.toml: {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ('languages = ["fr"]', r"^\[second_judge\] wordlist does not cover English \(en\), Spanish \(es\): leave it"),
        ("strict = true", r"^\[second_judge\] wordlist does not cover Spanish \(es\): leave it out, or take another"),
    ],
)
def test_a_second_judge_that_does_not_cover_the_prompts_is_refused(tmp_path, judge, words):
    code = "fr" if "fr" in judge else "en"
    listed = f'kind = "wordlist"\nwords = {{{code} = ["fool"]}}\n' + ("" if code == "fr" else f"{judge}\n")
    (tmp_path / "study.toml").write_text(f"{FILE}[second_judge]\n{listed}")
    with pytest.raises(ValueError, match=words):
        Study.from_toml(tmp_path / "study.toml").materials()
