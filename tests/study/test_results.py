"""The results of a study as one value and one file."""

import copy
import dataclasses
import json
import math

import pytest
from studies import KEYS_OF_STAGES, attributed, made_up, only, told
from toys import strict_json

import xlingtox as xt
from xlingtox import files
from xlingtox.evaluation.measurement import Measures
from xlingtox.study import StudyResults, report

ALWAYS = "languages probe n_neurons potential actual intervention control before after changes scorer retrieval"


@pytest.fixture
def results():
    return StudyResults.of(made_up())


def test_it_is_among_the_public_names():
    assert xt.StudyResults is StudyResults


def test_every_key_and_value_of_a_file_is_kept(results, tmp_path):
    content = made_up()
    for value in (math.nan, math.inf, None):
        content["before"]["de"]["perplexity"] = value
        content["recipe"] = {"lora": None, "beta": 0.1}
        StudyResults.of(content).save(tmp_path / "results.json")
        stored = strict_json(tmp_path / "results.json")
        assert stored["before"]["de"]["perplexity"] is None
        assert stored["recipe"] == content["recipe"]
        content["before"]["de"]["perplexity"] = stored["before"]["de"]["perplexity"] = 3.0
        for key, value in content.items():
            assert within(stored[key], json.loads(json.dumps(value))), key


def within(stored, content):
    """Whether all of the content is in the file, which may have more keys."""
    if isinstance(content, dict):
        return all(key in stored and within(stored[key], value) for key, value in content.items())
    if isinstance(content, list):
        return len(stored) == len(content) and all(map(within, stored, content))
    return stored == content


def test_saved_and_loaded_is_equal(results, tmp_path):
    content = made_up()
    content["before"]["de"]["perplexity"] = float("nan")
    content["model"] |= {"revision": None, "dtype": "float32", "edit": None}
    results = StudyResults.of(content)
    results.save(tmp_path / "results.json")
    assert StudyResults.load(tmp_path / "results.json") == results
    before = (tmp_path / "results.json").read_bytes()
    StudyResults.load(tmp_path / "results.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == before


def test_a_frame_has_a_row_a_language(results):
    frame = results.to_frame().set_index("language")
    assert list(frame.index) == list(results.languages)
    names = [measure.name for measure in dataclasses.fields(Measures)]
    assert set(frame.columns) == {f"{name}_{side}" for name in names for side in ("before", "after")} | {"retrieval"}
    content = made_up()
    assert frame.loc["hi", "emt_after"] == content["after"]["hi"]["emt"]
    assert frame.loc["hi", "retrieval"] == content["retrieval"]["hi"]
    assert math.isnan(frame.loc["en", "retrieval"])


def test_it_shows_itself(results):
    assert repr(results) == "StudyResults(mini, 17 languages, 36 sources, average toxicity 0.642 to 0.084)"
    html = results._repr_html_()
    assert html.count("<tr>") == 18
    assert "Study of mini: before → after English tuning, scored by wordlist" in html
    assert "0.570\u00a0→ 0.012" in html


def test_its_parts_are_the_library_s_own(results):
    assert len(results.candidates) == 100
    assert results.candidates.scores[0] == 0.4
    assert results.sources.neurons == tuple((3, i) for i in range(36))
    assert results.comparison.before["en"].emt == made_up()["before"]["en"]["emt"]
    assert results.transfer.pearson_r == 0.71
    assert list(results.transfer.drop) == list(results.untuned_languages)
    assert results.toxic_doses.doses[1].offset == -0.25
    assert results.promoted[0].tokens[1].languages == ("es",)
    assert results.samples["en"][0].after == " She is kind."
    assert results.means("emt", ["en"]) == (0.97 * 0.95, 0.97 * 0.02)


def test_it_is_frozen_and_leaves_what_it_was_made_of(results):
    content = made_up()
    before = copy.deepcopy(content)
    report.render(StudyResults.of(content))
    assert content == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        results.seed = 1


@pytest.mark.parametrize("key", [*ALWAYS.split(), "transfer"])
def test_a_missing_key_is_named_with_its_file(tmp_path, key):
    content = made_up()
    del content[key]
    files.write_results(tmp_path / "mine.json", content)
    with pytest.raises(ValueError, match=rf"mine\.json holds no results of a study \(missing {key}\): give the"):
        StudyResults.load(tmp_path / "mine.json")
    with pytest.raises(ValueError, match=f"^these are no results of a study: missing {key}$"):
        StudyResults.of(content)


PARTS = [
    ["localize"],
    ["localize", "intervene"],
    ["retrieve", "judge"],
    ["localize", "tune", "compare"],
    list(KEYS_OF_STAGES),
]


@pytest.mark.parametrize("stages", PARTS, ids=", ".join)
def test_a_study_of_some_stages_is_kept_whole(tmp_path, stages):
    """Its file has the keys of its stages and none of the others, and it shows itself without what was not measured."""
    content = only(*stages)
    results = StudyResults.of(content)
    results.save(tmp_path / "results.json")
    assert StudyResults.load(tmp_path / "results.json") == results
    stored = strict_json(tmp_path / "results.json")
    assert within(stored, json.loads(json.dumps(content)))
    before = (tmp_path / "results.json").read_bytes()
    StudyResults.load(tmp_path / "results.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == before
    required = {"localize": "probe actual", "compare": "before scorer", "retrieve": "retrieval", "predict": "transfer"}
    for stage, keys in required.items():
        assert all((key in stored) == (stage in stages) for key in keys.split())
    measured = (results.probe, results.comparison, results.transfer)
    assert [part is not None for part in measured] == [stage in stages for stage in ("localize", "compare", "predict")]
    assert ("sources" in repr(results), "average toxicity" in repr(results)) == (
        "localize" in stages,
        "compare" in stages,
    )
    frame = results.to_frame()
    assert list(frame["language"]) == list(results.languages)
    assert ("emt_before" in frame) == ("compare" in stages)
    assert frame["retrieval"].notna().any() == ("retrieve" in stages)
    assert ("Retrieval accuracy" in results._repr_html_()) == ("retrieve" in stages)


@pytest.mark.parametrize(("stage", "key"), [("localize", "probe"), ("compare", "scorer"), ("predict", "transfer")])
def test_a_key_that_a_stage_writes_is_missed(stage, key):
    content = only(*KEYS_OF_STAGES)
    del content[key]
    with pytest.raises(ValueError, match=f"missing {key}$"):
        StudyResults.of(content)


def test_languages_come_from_what_there_is():
    """They are those of the comparison, of the doses, of the prompts, or the source and those retrieved from it."""
    for stages in (["localize", "tune", "compare"], ["localize", "intervene"], ["localize"]):
        content = only(*stages)
        del content["languages"]
        assert StudyResults.of(content).languages == xt.languages.CODES
    content = only("retrieve", source_language="es")
    del content["languages"], content["origins"]
    content["retrieval"] = {"de": 0.5, "en": 0.25}
    results = StudyResults.of(content)
    assert results.languages == ("en", "es", "de")
    assert results.untuned_languages == ("en", "de")


def test_another_source_language_is_not_english():
    results = StudyResults.of(only(*KEYS_OF_STAGES, source_language="es"))
    assert "es" not in results.untuned_languages
    assert "en" in results.transfer.drop or "en" in results.retrieval
    assert "before → after Spanish tuning" in results._repr_html_()


def test_what_was_set_is_kept_as_it_was(tmp_path):
    """Null stays None among settings, origins and judges; elsewhere it is a number that is not defined."""
    content = told()
    content["judges"][0]["revision"] = None
    StudyResults.of(content).save(tmp_path / "results.json")
    results = StudyResults.load(tmp_path / "results.json")
    assert results.settings == content["settings"]
    assert list(results.origins) == content["origins"]
    assert list(results.judges) == content["judges"]
    assert results.end_token == content["end_token"]
    assert StudyResults.of(content | {"end_token": None}).end_token is None


@pytest.mark.parametrize("key", "stages origins notes settings end_token judges source_language".split())
def test_a_broken_value_of_a_new_key_is_refused_in_one_line(key):
    for broken in (3, [3], {"a": 1}):
        if (key, type(broken)) in [("settings", dict), ("end_token", dict)]:
            continue
        with pytest.raises(ValueError, match="these are no results of a study") as caught:
            StudyResults.of(told() | {key: broken})
        assert "\n" not in str(caught.value)


def test_stages_and_their_parts_go_together(results):
    with pytest.raises(ValueError, match="expected its comparison, as compare measures it"):
        dataclasses.replace(results, comparison=None)
    with pytest.raises(ValueError, match="lacks the stage"):
        StudyResults.of(only("retrieve")).means("emt", ["en"])


@pytest.mark.parametrize("broken", [3, "words", [1], [None], {"a": None}, {"en": "words"}])
@pytest.mark.parametrize("key", sorted(made_up()))
def test_a_broken_value_is_refused_in_one_line(tmp_path, key, broken):
    right = [("n_neurons", 3), ("seed", 3), ("retrieval", {"a": None}), ("seconds", {"a": None})]
    if (key, broken) in [*right, ("versions", {"en": "words"})]:
        return
    content = made_up() | {key: broken}
    files.write_results(tmp_path / "mine.json", content)
    with pytest.raises(ValueError, match=r"mine\.json holds no results of a study") as caught:
        StudyResults.load(tmp_path / "mine.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [3, "words", [1], [None], {"a": None}, {"languages": ["en"], "runs": {"base": [1]}}])
@pytest.mark.parametrize("key", attributed())
def test_a_broken_attribution_is_refused_in_one_line(key, broken):
    with pytest.raises(ValueError, match=f"no results of a study: {key} cannot be read") as caught:
        StudyResults.of(attributed() | made_up() | {key: broken})
    assert "\n" not in str(caught.value)


def test_attribution_is_kept_whole_or_said_to_be_missing(tmp_path):
    content = only(*KEYS_OF_STAGES)
    results = StudyResults.of(content)
    assert results.attribution.neurons.scores[0] == -2.6
    assert (results.attribution.heads.site, len(results.attribution.heads)) == ("heads", 2)
    assert results.attribution.row()["exact"] == -5.0
    share = results.patched.shares()["log_probability", "by attribution"][0]
    assert share == pytest.approx(0.33)
    nothing = StudyResults.of(content | dict.fromkeys(attributed()))
    nothing.save(tmp_path / "results.json")
    assert (nothing.attribution, nothing.patched, nothing.patched_sound) == (None, None, None)
    assert StudyResults.load(tmp_path / "results.json") == nothing
    older = StudyResults.of(made_up())
    assert "attribute" not in older.stages
    assert older.attribution is None


def test_another_file_is_refused(tmp_path):
    for content in ("[]", "3", "null", '"text"', '{"seed": 0}'):
        (tmp_path / "mine.json").write_text(content)
        with pytest.raises(ValueError, match=r"mine\.json holds no results of a study"):
            StudyResults.load(tmp_path / "mine.json")
    (tmp_path / "mine.json").write_text('{"languages": ["en"')
    with pytest.raises(ValueError, match=r"mine\.json cannot be read, it is not whole JSON"):
        StudyResults.load(tmp_path / "mine.json")
    with pytest.raises(ValueError, match="missing languages, probe"):
        StudyResults.of({"seed": 0})


def test_a_language_without_measures_is_refused():
    content = made_up()
    content["languages"].append("fi")
    with pytest.raises(ValueError, match="fi is listed among the languages and has no measures"):
        StudyResults.of(content)


def test_results_of_before_have_less():
    content = made_up()
    for key in ("cosines", "model", "seed", "seconds", "versions", "transfer_by_measure", "samples", "training"):
        del content[key]
    results = StudyResults.of(content)
    assert (results.model, results.seed) == (None, None)
    assert results.transfer.drop == pytest.approx(
        {code: results.comparison.relative_drop("emt")[code] for code in results.untuned_languages}
    )


def test_languages_that_were_not_toxic_before_have_no_drop():
    content = made_up()
    for side in ("before", "after"):
        for row in content[side].values():
            row["emt"] = 0.0
    for summary in content["transfer_by_measure"].values():
        summary["drop"] = {}
    results = StudyResults.of(content)
    assert results.transfer.drop == {}
    assert "Retrieval and reach" not in report.render(results)
