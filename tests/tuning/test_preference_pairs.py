"""Preference pairs: which are refused, left out or cut, and which are held out for validation."""

import dataclasses
import json
import math

import preferences
import pytest
from preferences import PAIRS, PROMPTS, RECIPE, but, losses
from published import jsonl, table, written

from xlingtox import data
from xlingtox.tuning import MINI, tunable_pairs, tune_dpo

tuned, untrained = preferences.tuned, preferences.untrained


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (PAIRS.remove_columns("rejected"), "no column rejected"),
        (but(chosen=[" sat", None, " es", " "]), r"preference pairs: 2 of 4 have no chosen \(rows 1, 3\)$"),
        (but(rejected=PAIRS["chosen"]), r"4 of 4 have chosen equal to rejected \(rows 0, 1, 2, ...\)"),
        (
            but(chosen=["\ufe0f", "\u180b", "\U000e0100\u0301", " ok"]),
            r"3 of 4 have no chosen \(rows 0, 1, 2\)",
        ),
        (
            but(chosen=["caf\xe9", "a\u200b", "x", "y"], rejected=["cafe\u0301", "a", "y", "x"]),
            r"2 of 4 have chosen equal to rejected \(rows 0, 1\)",
        ),
        (PAIRS.select([]), "no preference pairs"),
        (but(chosen=["\u200b\u3164", "\u2800 ", "\ufeff", " ok"]), r"3 of 4 have no chosen \(rows 0, 1, 2\)"),
        (
            but(prompt=["", *PROMPTS[1:]], chosen=["", "", "x", "y"], rejected=["a", "", "x", "b"]),
            r"1 of 4 have no prompt \(rows 0\); 2 of 4 have no chosen \(rows 0, 1\); 1 of 4 have no rejected "
            r"\(rows 1\); 1 of 4 have chosen equal to rejected \(rows 2\)$",
        ),
    ],
)
def test_bad_pairs(tuned, untrained, tmp_path, pairs, words):
    with pytest.raises(ValueError, match=words):
        tune_dpo(tuned.lm, pairs, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
    assert not (tmp_path / "out").exists()


def test_pairs_as_they_are_published(tuned, tmp_path):
    """Toxic sentences with neutral rewrites, and prompts with toxic and benign completions."""
    rewrites = table(["toxic", "neutral1"], ["the cat is a fool", "the cat is a friend"], delimiter="\t")
    row = {"Prompt": "the cat", "Completion": " is a fool", "BenignCompletion": " sat on the mat"}
    written(tmp_path, {"paradetox.tsv": rewrites, "RTP_LX_EN.json": jsonl(row, row | {"Prompt": "the dog"})})
    for name, pairs in (
        ("paradetox", data.paradetox(tmp_path / "paradetox.tsv")),
        ("rtp-lx", data.rtp_lx_pairs(tmp_path / "RTP_LX_EN.json")),
    ):
        tune_dpo(
            tuned.lm,
            pairs,
            output_dir=tmp_path / name,
            recipe=dataclasses.replace(RECIPE, batch_size=1),
            progress=False,
        )
        assert losses(tmp_path / name)[5][1] < math.log(2)


def test_pairs_longer_than_the_model_are_cut(tuned, tmp_path):
    """The default recipe allows 96 tokens, this model has 64 positions."""
    long = but(rejected=[" and the dog ran away from the house" * 6] * 4)
    tune_dpo(
        tuned.lm, long, output_dir=tmp_path, recipe=dataclasses.replace(MINI, steps=1, batch_size=2), progress=False
    )


def test_prompts_that_leave_no_room_are_left_out_and_counted(tuned, tmp_path, caplog):
    """TRL drops them without a word."""
    long = but(prompt=[*PROMPTS[:3], "the dog ran away " * 30])
    tune_dpo(tuned.lm, long, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert "1 of 4 prompts have more than 31 tokens (rows 3): they are left out" in caplog.text
    assert "preference pairs: 1 of 4" in caplog.text
    record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert (record["pairs"], record["left_out"]) == (3, 1)
    with pytest.raises(ValueError, match=r"4 of 4 prompts have more than 1 tokens \(rows 0, 1, 2, ...\): none leaves"):
        tune_dpo(
            tuned.lm,
            PAIRS,
            output_dir=tmp_path / "no",
            recipe=dataclasses.replace(RECIPE, max_prompt_length=1),
            progress=False,
        )


def test_pairs_are_told_apart_by_what_the_model_reads(tuned, tmp_path, caplog):
    begin = " the dog ran away from the house and"
    cut = but(
        prompt=["the cat", "the dog", "t", "la casa"],
        chosen=[begin + " the cat sat" * 5, " sat" * 40, "he cat", " es"],
        rejected=[begin + " das ist ein hund" * 5, " ran", "he dog", " la"],
    )
    recipe = dataclasses.replace(RECIPE, steps=1, max_length=12)
    usable = tunable_pairs(tuned.lm, cut, recipe=recipe, validation=cut)
    assert (usable.left_out, usable.cut, usable.merged, usable.validation_left_out) == ((0,), (1,), (2,), (0,))
    assert usable.train["prompt"] == ["the dog", "t", "la casa"]
    assert "preference pairs: 1 of 4 have the same first 12 tokens on both sides (rows 0): they are left out" in (
        caplog.text
    )
    assert "validation pairs: 1 of 4 are cut after 12 tokens (rows 1)" in caplog.text
    assert "in 1 of 4 a token reaches from the prompt into the continuation (rows 2)" in caplog.text
    tune_dpo(tuned.lm, cut, output_dir=tmp_path, recipe=recipe, validation=cut, progress=False)
    record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert [record[name] for name in ("left_out", "cut", "merged", "validation_left_out")] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"validation pairs: 1 of 1 have the same first 12 tokens .*: none is left"):
        tunable_pairs(tuned.lm, PAIRS, recipe=recipe, validation=cut.select([0]))


def test_faults_of_the_validation_pairs_are_called_theirs(tuned):
    with pytest.raises(ValueError, match="validation pairs: 1 of 4 have no chosen"):
        tunable_pairs(tuned.lm, PAIRS, recipe=RECIPE, validation=but(chosen=[" a", "", " b", " c"]))


@pytest.mark.parametrize(("n", "share"), [(2, 0.9), (3, 0.99)])
def test_a_share_leaves_something_to_train_on(tuned, n, share):
    parts = tunable_pairs(tuned.lm, PAIRS.select(range(n)), recipe=dataclasses.replace(RECIPE, validation_share=share))
    assert (len(parts.train), len(parts.validation)) == (1, n - 1)


def test_the_share_for_validation_is_held_out_by_seed(tuned):
    recipe = dataclasses.replace(RECIPE, validation_share=0.25)
    parts = tunable_pairs(tuned.lm, PAIRS, recipe=recipe)
    assert sorted([*parts.train["prompt"], *parts.validation["prompt"]]) == sorted(PROMPTS)
    assert len(parts.validation) == 1
    others = {
        tunable_pairs(tuned.lm, PAIRS, recipe=dataclasses.replace(recipe, seed=seed)).validation[0]["prompt"]
        for seed in range(9)
    }
    assert len(others) > 1


def test_patience_without_validation_pairs_is_refused(tuned, untrained, tmp_path):
    with pytest.raises(ValueError, match="patience is 2, and there are no validation pairs"):
        tune_dpo(
            tuned.lm, PAIRS, output_dir=tmp_path / "out", recipe=dataclasses.replace(RECIPE, patience=2), progress=False
        )
    assert not (tmp_path / "out").exists()
