"""Several studies on one page and in a terminal: what differs first, then what each found."""

import pytest
from browsing import visiting
from studies import HOSTILE, hostile, made_up, only, told

from xlingtox.study import StudyResults, comparing, differences


@pytest.fixture
def contents():
    """Two studies that differ in the steps of tuning, in their languages, and in a verdict."""
    first, second = told(), told()
    second["recipe"] = second["recipe"] | {"steps": 20}
    for key in ("before", "after", "changes", "retrieval"):
        del second[key]["ar"]
    second["languages"].remove("ar")
    second["verdicts"] = [
        {"claim": "Toxicity can be localised in these 50 neurons.", "verdict": "found", "reason": "So."}
    ]
    return first, second


@pytest.fixture
def folders(contents, tmp_path):
    for name, content in zip(("runs/a", "runs/b", "more/b"), (*contents, only("localize", "intervene")), strict=True):
        (tmp_path / name).mkdir(parents=True)
        StudyResults.of(content).save(tmp_path / name / "results.json")
    return [tmp_path / "runs/a", tmp_path / "runs/b", tmp_path / "more/b"]


def test_what_differs_comes_first(folders):
    text = comparing.summary(folders[:2])
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("1  a\n2  b\n\nThese two differ in: recipe.steps 22 -> 20.\nb lacks Arabic.\nBeware. a: Too")
    lines = text.splitlines()
    assert ["Languages", "17", "16"] in [line.split() for line in lines]
    assert "weak       found      Toxicity can be localised in these 100 neurons." in lines
    page = comparing.compare_studies(folders[:2])
    order = [
        "2 studies side by side: a, b",
        "These two differ in: recipe.steps 22 → 20.",
        "b lacks Arabic.",
        "Read this first",
    ]
    order += [
        "What was found",
        "Do the claims stand?",
        "Figures and numbers",
        "Figure 1. Average toxicity before and after tuning",
    ]
    assert [words for words in order if f">{words}" not in page] == []
    places = [page.index(f">{words}") for words in order]
    assert places == sorted(places)
    assert '<b class="weak">weak</b></td><td style="text-align: left"><b class="found">found</b>' in page


def test_paths_and_results_give_the_same(folders, contents, tmp_path):
    by_name = dict(zip("ab", map(StudyResults.of, contents), strict=True))
    assert comparing.compare_studies(by_name) == comparing.compare_studies(folders[:2])
    assert comparing.summary(by_name) == comparing.summary([str(folders[0] / "results.json"), folders[1]])
    comparing.write(folders[:2], tmp_path / "compared.html")
    assert (tmp_path / "compared.html").read_text("utf-8") == comparing.compare_studies(by_name)


def test_folders_of_one_name_are_told_apart(folders):
    assert list(comparing.named(folders)) == ["runs/a", "runs/b", "more/b"]
    assert list(comparing.named(folders[:2])) == ["a", "b"]
    text = comparing.summary(folders)
    assert "more/b did not run promoted, amplify, retrieve, tune, compare, predict, judge." in " ".join(text.split())
    assert "These 3 differ in: recipe.steps 22 / 20 / -." in text
    assert "Toxicity, the others" in comparing.compare_studies(folders)


def test_bad_input_is_refused_in_one_line(folders, tmp_path):
    for studies, said in (
        (folders[:1], "the number of studies is 1: give two or more"),
        ([folders[0], tmp_path / "none"], r"none has no results\.json: give the folder of a study that has run"),
        ([folders[0], folders[0]], "a is given twice"),
        ([folders[0], tmp_path], r"has no results\.json"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            comparing.compare_studies(studies)
        assert "\n" not in str(caught.value)
    (folders[1] / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json holds no results of a study \(missing languages"):
        comparing.summary(folders[:2])
    content = only("retrieve", source_language="es")
    content |= {"languages": ["tr", "fi"], "retrieval": {"tr": 0.5}, "origins": []}
    other = {"a": StudyResults.of(made_up()), "b": StudyResults.of(content)}
    with pytest.raises(ValueError, match=r"no language in common: a has English.*; b has Finnish, Turkish") as caught:
        comparing.summary(other)
    assert "\n" not in str(caught.value)


def test_every_fact_that_differs_is_named(contents):
    first, second = contents
    second["model"]["name"] = "other"
    second["settings"] = second["settings"] | {"k": 50}
    second["origins"][0] = second["origins"][0] | {"hash": "ffff"}
    second["judges"][0]["name"] = "another judge"
    second["versions"]["torch"] = "3.0"
    second["seed"] = 1
    studies = {"a": StudyResults.of(first), "b": StudyResults.of(second)}
    found = {difference.key: difference.values for difference in differences.between(studies)}
    assert found["model"] == ("mini", "other")
    assert found["settings.k"] == ("100", "50")
    assert found["recipe.steps"] == ("22", "20")
    assert found["seed"] == ("0", "1")
    assert found["data.toxic_prompts"][1].endswith("ffff")
    assert found["judge"][1].startswith("another judge")
    assert found["versions.torch"] == ("2.13", "3.0")
    assert len(found) == 8, "and the languages, and nothing else"
    assert "versions" not in differences.sentence(studies)
    assert differences.sentence({"a": studies["a"], "b": studies["a"]}) == (
        "These two do not differ in model, data or settings."
    )


def test_studies_that_differ_in_their_seed_share_a_panel():
    seeds = {name: StudyResults.of(made_up(seed) | {"seed": seed}) for seed, name in enumerate("ab")}
    page = comparing.compare_studies(seeds)
    assert "a, b: mean, least and greatest of 2 seeds" in page
    assert differences.seeds_of_one(seeds | {"c": StudyResults.of(only("retrieve"))}) == [["a", "b"], ["c"]]


def test_studies_without_a_comparison_have_no_figures():
    studies = {"a": StudyResults.of(only("retrieve")), "b": StudyResults.of(only("localize", "intervene"))}
    page = comparing.compare_studies(studies)
    assert 'class="plot"' not in page
    assert "Do translations lie near each other?" in page


def test_the_page_in_a_browser(browser, folders, tmp_path):
    studies = comparing.named(folders[:2]) | {HOSTILE: StudyResults.of(hostile())}
    comparing.write(studies, tmp_path / "compared.html")
    with visiting(browser, tmp_path / "compared.html", 390, "dark") as visit:
        assert len(visit.drawn()) == 4
        visit.page.locator(".menu summary").press("Enter")
        visit.page.get_by_role("button", name="None", exact=True).press("Enter")
        visit.page.get_by_role("checkbox", name="Hindi").press("Space")
        assert all(trace["x"] in (["hi"], []) for trace in visit.drawn()[0])
        assert visit.accessibility_faults() == []
        assert not visit.overflows()
        assert visit.page.locator("img").count() == 0
        assert (visit.faults, visit.requests) == ([], [])


def test_a_claim_that_holds_under_one_judge_only_is_called_so():
    """Two studies of one model: what the first judge finds and the second does not, and not what both find."""

    def judged(judge, **verdicts):
        content = told()
        content["judges"][0]["name"] = judge
        content["verdicts"] = [
            {"claim": f"{claim}.", "verdict": word, "reason": ""} for claim, word in verdicts.items()
        ]
        return content

    first = judged("list", It_falls="found", It_reaches="found", It_lasts="not found")
    second = judged("classifier", It_falls="not found", It_reaches="found", It_lasts="weak")
    studies = {"a": StudyResults.of(first), "b": StudyResults.of(second)}
    line = "This holds under one judge only, list, and not under classifier: It_falls."
    assert told_of(studies).count("under one judge only") == told_of(studies).count(line) == 1
    # Another seed under the same judge is no other judge, and another model is another question.
    assert "one judge only" not in told_of(
        {"a": studies["a"], "b": StudyResults.of(judged("list", It_falls="not found"))}
    )
    second["model"] = second["model"] | {"fingerprint": "0" * 12}
    assert "one judge only" not in told_of({"a": studies["a"], "b": StudyResults.of(second)})


def told_of(studies):
    return " ".join(comparing.summary(studies).split())
