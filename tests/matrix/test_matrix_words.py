"""What a transfer matrix says in words: its warnings, its findings, and its table in a notebook."""

import dataclasses
import re

import numpy as np
import pytest
from made_matrices import SIX, matrix

DROPS = 0.3 + np.array([0.0, 0.2, 0.0, 0.0, -0.1, 0.0])[:, None] + 0.2 * np.eye(6)


def sound(**fields):
    return matrix(DROPS, n_prompts=16, noise=0.1, **({"shuffled": np.full((6, 6), 0.02)} | fields))


def test_a_sound_matrix_has_no_warning():
    assert sound().warnings == ()
    assert set(sound().to_frame().caution) == {""}


def test_a_target_without_toxicity():
    result = sound(base=(0.5, 0.5, 0.005, 0.5, 0.5, 0.5))
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith(
        "Too little toxicity to tell: the base writes hardly any toxic text in 1 of 6 languages: French (0.00"
    )
    table = result.to_frame("average_toxicity")
    assert set(table[table.target == "fr"].caution) == {"hardly toxic before"}
    assert set(table[table.target != "fr"].caution) == {""}
    rare = sound()
    rare.values["toxicity_probability"] = np.ones_like(rare.values["average_toxicity"])
    rare.values["toxicity_probability"][0, 3, 5:] = 0
    assert rare.warnings[0].count("German (5 of 16 prompts)") == 1


def test_broken_and_silent_cells():
    result = sound()
    result.perplexity[1, 2] = 21.0
    result.values["degenerate"][2, 4] = 0.9
    result.values["degenerate"][3, 5] = 0.04
    broken, silent = result.warnings
    assert broken.startswith(
        "Fluency collapsed: the perplexity of held-out text more than doubled in 1 of 36 cells: French tuned on English "
        "(10.0 to 21.0)."
    )
    assert "in 1 of 36 cells: Russian tuned on Spanish (0\xa0% to 90\xa0%) not sound" in silent
    table = result.to_frame("average_toxicity").set_index(["source", "target"]).caution
    assert table["en", "fr"] == "fluency collapsed"
    assert table["es", "ru"] == "silence"
    assert (table != "").sum() == 2
    # Silence explains nothing where toxicity rose.
    risen = matrix(-DROPS, shuffled=DROPS)
    risen.values["degenerate"][1:] = 0.9
    assert set(risen.to_frame().caution) == {""}


def test_unsound_before_few_prompts_and_controls():
    result = sound()
    result.values["degenerate"][:, 1] = 0.5
    assert any(
        "own text is not sound in 1 of 6 languages: Spanish (50\xa0% not sound)" in line for line in result.warnings
    )
    few = matrix(DROPS, n_prompts=5, shuffled=0.02 * np.ones((6, 6)))
    assert any(line.startswith("Too few prompts in 6 of 6 languages: English (5)") for line in few.warnings)
    assert sound(shuffled=None).warnings[0].startswith("No control with shuffled labels")
    explained = sound(shuffled=0.7 * DROPS).warnings
    assert explained[0].startswith("Shuffled labels explain most of the drop: they give ")
    whole = matrix(np.full((6, 6), 0.95), shuffled=np.zeros((6, 6))).warnings
    assert whole[0].startswith("No spread to explain: average toxicity dropped by 95\xa0% to 95\xa0% in all cells")
    nothing = sound(base=(0.5, 0.5, 0.0, 0.5, 0.5, 0.5)).warnings
    assert any(line.startswith("No drop in 6 of 36 cells") for line in nothing)


def test_the_headline():
    rng = np.random.default_rng(0)
    near = rng.uniform(size=(6, 6))
    result = matrix(
        DROPS + 0.2 * near, n_prompts=16, noise=0.1, shuffled=np.full((6, 6), 0.04), properties={"retrieval": near}
    )
    reach, control, own, differ, best, caveat, relation, source, target = result.headline
    off = ~np.eye(6, dtype=bool)
    mean, shuffled = result.drops()[off].mean(), result.shuffled_drops()[off].mean()
    assert reach.startswith(f"Tuning on another language lowers average toxicity by {mean:.0%}".replace("%", "\xa0%"))
    assert control.endswith(f": {shuffled / mean:.0%} of the drop.".replace("%", "\xa0%"))
    assert own.startswith("Tuning on the language itself does ")
    assert re.match(r"Source languages differ in how well they teach other languages \(p ", differ)
    assert best.startswith("The best teacher is Spanish: ")
    assert "more than English" in best
    assert "corrected for 5)" in best
    assert "another seed of tuning" in caveat
    assert relation.startswith("What teachers and pupils leave over goes with retrieval: r = 0.")
    assert source.startswith("For a source that was left out, retrieval improves on means: ")
    assert target.startswith("For a target that was left out, retrieval improves on means: ")


def test_what_is_not_clear_is_said_to_be_so():
    rng = np.random.default_rng(1)
    result = matrix(
        np.full((6, 6), 0.3), noise=0.2, properties={"retrieval": rng.uniform(size=(6, 6)), "mixing": np.eye(6)}
    )
    lines = "\n".join(result.headline)
    assert "Source languages do not clearly differ" in lines
    assert "goes with none of these (retrieval)" in lines
    assert "retrieval does not clearly improve on means" in lines
    english_best = matrix(DROPS[[1, 0, 2, 3, 4, 5]], noise=0.1, n_prompts=16).headline
    assert any(line.startswith("The best teacher is English. After it comes ") for line in english_best)


@pytest.mark.parametrize("targets", [SIX[:3], ("fr", "de")])
def test_three_languages_and_other_targets_have_all_words(targets):
    result = matrix(DROPS[:3, : len(targets)], SIX[:3], targets)
    assert result.headline
    assert "<table>" in result._repr_html_()
    assert repr(result).startswith("TransferMatrix(tuned on 3 languages, evaluated in ")


def test_the_table_of_a_notebook():
    drops = DROPS.copy()
    drops[0, 1] = 0.0
    result = matrix(drops, n_prompts=16, shuffled=np.zeros((6, 6)), properties={"<b>": np.eye(6)})
    result.perplexity[1, 2] = 21.0
    html = result._repr_html_()
    assert html.startswith('<p class="warning" role="note"><b>Warning.</b> Fluency collapsed')
    cells = re.findall(r"<tr><th[^>]*>English</th>(.*?)</tr>", html)[0].split("</td>")[:3]
    assert [re.sub(r"<td[^>]*>", "", cell) for cell in cells] == ["<b>50\xa0%</b>", "0\xa0%°", "30\xa0%†"]
    assert "&lt;b&gt;" in html or "<b>)" not in html
    assert "As a teacher, in points" in html
    assert dataclasses.replace(result, properties={}).headline
