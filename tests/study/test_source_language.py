"""A study that tunes on another language than English: nothing says English that is not."""

import dataclasses

import pytest
import test_stages
from datasets import Dataset
from test_report import Page
from toys import strict_json

from xlingtox import mini
from xlingtox.paper import beside
from xlingtox.study import StudyResults, findings, report, templates
from xlingtox.study.study import Study

CODES = ("de", "es", "fr", "ru")
SUBJECTS = {code: test_stages.SUBJECTS.get(code, []) for code in CODES} | {
    "fr": ["le chat", "le chien", "la maison", "un chat", "un chien", "le lit"]
}


def table(places, column):
    return Dataset.from_list([{"language": code, column: SUBJECTS[code][place]} for code in CODES for place in places])


MATERIALS = dataclasses.replace(
    test_stages.MATERIALS,
    labelled=Dataset.from_list(
        [
            {"language": "de", "text": f"{SUBJECTS['de'][i % 6]} {'sat' if i % 2 else 'ran'} {i}", "label": i % 2}
            for i in range(40)
        ]
    ),
    labelled_elsewhere=None,
    toxic_prompts=table((0, 1), "prompt").add_column("group", ["first", "second"] * len(CODES)),
    neutral_prompts=table((2, 3), "prompt"),
    pairs=Dataset.from_dict(
        {
            "language": ["de"] * 4,
            "prompt": SUBJECTS["de"][:4],
            "chosen": [" sat", " es", " on", " the"],
            "rejected": [" ran", " no", " off", " a"],
        }
    ),
    parallel=Dataset.from_dict(SUBJECTS),
    held_out=table((4, 5), "text"),
    scorer=test_stages.HashScorer(*CODES),
    word_groups={"half": test_stages.HashScorer(*CODES)},
    toxic_words={"de": ["ran"], "es": ["no"]},
    mixing={},
)
SETTINGS = dataclasses.replace(
    test_stages.SETTINGS,
    source_language="de",
    k=6,
    offsets=(0.0, -1.0),
    n_random=1,
    n_random_amplified=1,
    attribution_prompts=2,
)


@pytest.fixture(scope="module")
def results(lm, tmp_path_factory):
    """What a reader of the file has."""
    folder = tmp_path_factory.mktemp("german") / "made"
    test_stages.run(lm, folder, MATERIALS, SETTINGS)
    return StudyResults.of(strict_json(folder / "results.json"))


def test_a_german_study_never_says_english(results):
    assert set(results.stages) == set(test_stages.STAGES)
    page = Page(report.render(results))
    said = [page.text, page.scripts[0], *map(str, findings(results)), results._repr_html_()]
    said += [f"{verdict.claim} {verdict.reason}" for verdict in results.verdicts]
    for text in said:
        assert "English" not in text
    assert "German tuning reaches" in page.text
    assert "German pairs" in page.text
    assert "Retrieval from German and to it" in page.text
    assert results.untuned_languages == ("es", "fr", "ru")
    assert set(results.retrieval) == {"es", "fr", "ru"} == set(results.transfer.drop)
    assert results.transfer.pivot == results.pivot == "de"
    reasons = [row.why_not for row in beside(results).rows]
    assert all("probed and tuned in German, and the paper in English" in reason for reason in reasons)


def test_rows_with_english_translations_are_retrieved_from_english(lm, tmp_path):
    """As Tatoeba has them: there is no German side to retrieve from, and the page says so."""
    english = ["the cat", "the dog", "the house", "a cat", "a dog", "the mat"]
    rows = [
        {"language": code, "sentence": sentence, "translation": translation}
        for code in CODES
        for sentence, translation in zip(SUBJECTS[code], english, strict=True)
    ]
    materials = dataclasses.replace(MATERIALS, parallel=Dataset.from_list(rows))
    settings = dataclasses.replace(SETTINGS, stages=("retrieve",))
    results = test_stages.run(lm, tmp_path, materials, settings)
    text = Page(report.render(results)).text
    assert (results.pivot, set(results.retrieval)) == ("en", set(CODES))
    assert "keeps translations from English" in text
    assert "of translations from English and back" in text
    assert "Retrieval from English and to it" in text
    assert "from German" not in text
    # A file of an earlier version does not say from which language.
    older = {name: value for name, value in strict_json(tmp_path / "results.json").items() if name != "pivot"}
    assert StudyResults.of(older).retrieved_from == "en"


@pytest.mark.parametrize(
    ("name", "codes", "words"),
    [
        ("pairs", ["es"] * 4, "pairs has nothing in German, the source language: .* set source_language to one of es"),
        ("pairs", ["de", "en", "de", "de"], "pairs has rows in en besides German, the source language: leave them out"),
        ("validation", ["fr"] * 4, "validation has nothing in German"),
        ("labelled", ["ru"] * 40, "labelled has nothing in German"),
    ],
)
def test_rows_of_another_language_are_refused(lm, tmp_path, name, codes, words):
    rows = MATERIALS.labelled if name == "labelled" else MATERIALS.pairs
    rows = rows.remove_columns("language").add_column("language", codes)
    with pytest.raises(ValueError, match=words):
        test_stages.run(lm, tmp_path / "out", dataclasses.replace(MATERIALS, **{name: rows}), SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_demos_file_with_another_source_language():
    changes = {"study.source_language": "de", "data.pairs.n": 5, "data.labelled.n": 6, "data.per_language": 1}
    study = Study.from_toml(templates.file("ours"), changes=changes | {"data.word_groups.loader": "mini.whose_words"})
    materials = study.materials()
    assert set(materials.labelled["language"]) == {"de"}
    assert "de" not in materials.labelled_elsewhere["language"]
    assert "en" in materials.labelled_elsewhere["language"]
    german = mini.pairs("de", n=5)
    assert materials.pairs.to_list() == german.remove_columns("language").to_list()
    assert list(materials.word_groups) == ["a German insult", "an insult of the prompt's language"]
    origins = {origin["table"]: origin["languages"] for origin in materials.origins}
    assert (origins["pairs"], origins["labelled"]) == ({"de": 5}, {"de": 6})
