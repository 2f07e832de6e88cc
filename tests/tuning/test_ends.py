"""Whether the end of text is part of what is preferred: how it is decided, what is tuned on, and what is recorded."""

import copy
import dataclasses
import json
import logging
import statistics

import numpy as np
import preferences
import pytest
import raw
import torch
from preferences import PAIRS, RECIPE, Interrupted
from scipy import stats
from transformers import AutoModelForCausalLM

from xlingtox import mini
from xlingtox.models.hooked import HookedLM
from xlingtox.text import ends_a_sentence
from xlingtox.tuning import MINI, PAPER_FULL, PAPER_QLORA, callback, decide_end, tunable_pairs, tune_dpo
from xlingtox.tuning.ends import prompt_sample
from xlingtox.tuning.run import Run

tuned, untrained = preferences.tuned, preferences.untrained

OPEN = dataclasses.replace(RECIPE, end_token=None)
WITHOUT = dataclasses.replace(RECIPE, end_token=False)


def of(chosen, rejected):
    return [{"prompt": "the cat", "chosen": c, "rejected": r} for c, r in zip(chosen, rejected, strict=True)]


@pytest.mark.parametrize(
    "text",
    'He left.|¿Quién?|He said: "Go!"|(Yes.)|“Go.”|»Geh.«|„Geh.“|他走了。|「行け！」|वह गया।|هل ذهب؟|وہ گیا۔|그는 갔다.|'
    "*Go.*|gone...|gone…|Go. \n|Գնաց։|ሄደ።".split("|"),
)
def test_sentences_end(text):
    assert ends_a_sentence(text)


@pytest.mark.parametrize("text", ["and then he", "he, who", "3.5 km", 'the "', "", " ", "他走", "item:", "U.S. army"])
def test_what_was_cut_ends_no_sentence(text):
    assert not ends_a_sentence(text)


def test_the_miniatures_sentences_end_for_a_reason(lm):
    for code in ("en", "zh", "ar", "hi", "ko"):
        assert decide_end(lm, mini.pairs(code, n=30)).preferred
    assert (MINI.end_token, PAPER_FULL.end_token, PAPER_QLORA.end_token) == (None, True, True)


def test_the_rule(lm):
    """Nine of ten on both sides, and not all of one length; the recipe's word and a written end come first."""
    whole, cut = [f" {'ran ' * i}home." for i in range(1, 11)], [f" {'ran ' * i}to the" for i in range(1, 11)]

    def preferred(chosen, rejected, recipe=OPEN):
        return decide_end(lm, of(chosen, rejected), recipe=recipe).preferred

    far = [text.replace("ran", "far") for text in whole]
    assert preferred(whole, far)
    assert preferred([*whole[1:], cut[0]], far)
    assert not preferred([*whole[2:], *cut[:2]], far)
    assert not preferred(whole, cut)
    assert not preferred(cut, whole)
    assert preferred([text + "<eos>" for text in cut], whole)
    assert preferred(cut, whole, RECIPE)
    assert not preferred(whole, far, WITHOUT)
    assert "recipe" in decide_end(lm, of(whole, far), recipe=WITHOUT).reason
    at_one_length = [f" {'ran ' * 5}{letter}." for letter in "abcdefghij"]
    assert decide_end(lm, of(at_one_length, far), recipe=OPEN).reason.startswith(
        "nearly all chosen sides have the same"
    )
    # A refusal that is always the same was not cut, and of a few texts all may be equally long.
    assert preferred([" no."] * 10, far)
    assert preferred(at_one_length[:9], far[:9])


def test_without_an_end_the_sides_are_the_text_alone(lm, tokenizer):
    pairs = of([" sat on the mat", " ran<eos>"], [" ran away", " sat"])
    ended, bare = (tunable_pairs(lm, pairs, recipe=recipe).tokenized("train", lm) for recipe in (RECIPE, WITHOUT))
    for row, pair in enumerate(pairs):
        for side in ("chosen", "rejected"):
            text = tokenizer(pair[side].removesuffix("<eos>"))["input_ids"]
            assert bare[row][f"{side}_ids"] == text
            assert ended[row][f"{side}_ids"] == [*text, tokenizer.eos_token_id]
    assert tunable_pairs(lm, pairs, recipe=OPEN).tokenized("train", lm).to_list() == bare.to_list()


def test_validation_pairs_follow_what_was_decided_by_the_others(lm):
    whole, cut = of([" sat."], [" ran."]), of([" sat on"], [" ran to"])
    for pairs, validation, ended in ((whole, cut, True), (cut, whole, False)):
        usable = tunable_pairs(lm, pairs, recipe=OPEN, validation=validation)
        assert (usable.tokenized("validation", lm)[0]["chosen_ids"][-1] == 0) is ended


def test_a_side_of_nothing_but_an_end_is_left_out_where_no_end_is_preferred(lm, caplog):
    pairs = of(["<eos>", " sat"], [" ran", " ran"])
    assert tunable_pairs(lm, pairs, recipe=RECIPE).left_out == ()
    assert tunable_pairs(lm, pairs, recipe=WITHOUT).left_out == (0,)
    assert "1 of 2 have a side with nothing but an end of text (rows 0)" in caplog.text
    with pytest.raises(ValueError, match=r"nothing but an end of text .*: none is left to tune on"):
        tunable_pairs(lm, pairs[:1], recipe=WITHOUT)


def test_which_way_it_was_decided_is_logged(lm, caplog):
    caplog.set_level(logging.INFO)
    tunable_pairs(lm, PAIRS, recipe=OPEN)
    assert "the end of text is not part of what is preferred, since 0 % of the chosen" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    tunable_pairs(lm, PAIRS, recipe=RECIPE)
    assert "the end of text is part of what is preferred, since the recipe says so" in caplog.text


def test_chosen_sides_that_are_shorter_are_warned_of_where_the_end_is_preferred(lm, caplog):
    short = of([f" sat {i}." for i in range(14)], [f" ran away from the house {i}." for i in range(14)])
    usable = tunable_pairs(lm, short, recipe=OPEN)
    assert "the chosen side is shorter in 100 % of 14 pairs" in caplog.text
    assert "silence would pass for safety" in caplog.text
    caplog.clear()
    tunable_pairs(lm, short, recipe=WITHOUT)
    as_long = short[:7] + [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in short[7:]]
    tunable_pairs(lm, as_long, recipe=OPEN)
    tunable_pairs(lm, short[:3], recipe=OPEN)  # may be an accident
    assert "shorter" not in caplog.text
    lengths = {side: [len(lm.tokenizer(row[side])["input_ids"]) for row in short] for side in ("chosen", "rejected")}
    assert usable.lengths.chosen_mean == pytest.approx(statistics.fmean(lengths["chosen"]))
    assert usable.lengths.rejected_median == statistics.median(lengths["rejected"])
    assert (usable.lengths.chosen_shorter, usable.lengths.pairs) == (1.0, 14)


def test_a_cut_side_has_no_end_and_is_counted_as_it_is_cut(lm):
    long = of([" sat", " sat"], [" ran away from the house" * 4, " ran"])
    usable = tunable_pairs(lm, long, recipe=dataclasses.replace(RECIPE, max_length=10))
    start = len(lm.tokenizer("the cat")["input_ids"])
    assert usable.cut == (0,)
    sides = 10 - start, len(lm.tokenizer(" ran")["input_ids"])
    assert usable.lengths.rejected_mean == statistics.fmean(sides)


def test_conversations_keep_the_end_of_their_template(lm, tokenizer):
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<eos>{% endfor %}"
    talker = HookedLM.load(lm.unwrapped(), tokenizer=chatting)
    turns = [[{"role": role, "content": text}] for role, text in (("user", "cat"), ("assistant", "sat"))]
    pairs = [{"prompt": turns[0], "chosen": turns[1], "rejected": [{"role": "assistant", "content": "ran"}]}]
    assert "chat template" in decide_end(talker, pairs, recipe=OPEN).reason
    assert tunable_pairs(talker, pairs, recipe=OPEN).tokenized("train", talker)[0]["chosen_ids"][-1] == 0
    with pytest.raises(ValueError, match="end_token is False, and the pairs are conversations"):
        tunable_pairs(talker, pairs, recipe=WITHOUT)


def at_once(model, tokenizer, prompts):
    values = [
        float(raw.forward(model, torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double().softmax(-1)[0])
        for text in prompts
    ]
    arm = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return {"mean": np.mean(values), "low": max(0, np.mean(values) - arm), "high": np.mean(values) + arm}


def test_the_record_holds_the_end_the_lengths_and_the_probability_of_ending_at_once(tuned, model, tokenizer):
    record = json.loads((tuned.folder / "recipe.json").read_text("utf-8"))
    assert record["end_token"] == {"preferred": True, "reason": "the recipe says so"}
    assert record["lengths"] == dataclasses.asdict(tunable_pairs(tuned.lm, PAIRS, recipe=RECIPE).lengths)
    ending, after = record["ending_at_once"], AutoModelForCausalLM.from_pretrained(tuned.folder).eval()
    assert ending["prompts"] == 4
    assert ending["before"] == pytest.approx(at_once(model, tokenizer, PAIRS["prompt"]), rel=1e-3)
    assert ending["after"] == pytest.approx(at_once(after, tokenizer, PAIRS["prompt"]), rel=1e-3)
    assert ending["after"] != pytest.approx(ending["before"], rel=1e-2)


def test_the_probability_is_that_of_a_bounded_sample_of_different_prompts():
    prompts = [f"the cat {i // 2}" for i in range(140)]
    drawn = prompt_sample(prompts, 0)
    assert (len(drawn), len(set(drawn))) == (64, 64)
    assert drawn == prompt_sample(prompts, 0) != prompt_sample(prompts, 1)
    assert prompt_sample(prompts[:20], 0) == prompts[:20:2]


def test_a_resumed_run_has_the_same_record(tuned, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, steps=3, save_every=1)

    def tune(name, patches=()):
        with monkeypatch.context() as patched:
            for target, attribute, value in patches:
                patched.setattr(target, attribute, value)
            return tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path / name, recipe=recipe, progress=False)

    def interrupt(*_, **__):
        raise Interrupted

    def stop_at_two(self, args, state, control, **_):
        if state.global_step == 2:
            raise Interrupted

    tune("whole")
    with pytest.raises(Interrupted):
        tune("cut", [(callback.TrainingMonitor, "on_step_end", stop_at_two)])
    unfinished = json.loads((tmp_path / "cut" / "recipe.json").read_text("utf-8"))
    assert (unfinished["ending_at_once"]["after"], unfinished["finished"]) == (None, False)
    # Killed once more, when the weights are saved and the tuned model is about to be measured.
    with pytest.raises(Interrupted):
        tune("cut", [(Run, "finish", interrupt)])
    assert json.loads((tmp_path / "cut" / "recipe.json").read_text("utf-8"))["finished"] is False
    tune("cut")
    assert (tmp_path / "cut" / "recipe.json").read_bytes() == (tmp_path / "whole" / "recipe.json").read_bytes()
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_folder_from_before_is_known_again(tuned, untrained, tmp_path):
    """There the end was always preferred, and nothing said so."""
    record = json.loads((tuned.folder / "recipe.json").read_text("utf-8"))
    older = {name: record[name] for name in record if name not in ("end_token", "lengths", "ending_at_once")}
    older["recipe"] = {name: value for name, value in record["recipe"].items() if name != "end_token"}
    (tmp_path / "recipe.json").write_text(json.dumps(older | {"finished": False}))
    with pytest.raises(ValueError, match=r"another run \(other end_token\)"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=WITHOUT, progress=False)
    with pytest.raises(preferences.Begun):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


def test_an_end_is_taught_only_where_it_is_preferred(tuned, tmp_path):
    """Behind the chosen words the end becomes likelier if the pairs hold it there than if they do not."""
    short = of([f" sat {i}." for i in range(8)], [f" ran away from the house {i}." for i in range(8)])
    ended = {}
    for end in (True, False):
        recipe = dataclasses.replace(RECIPE, steps=6, end_token=end)
        after = tune_dpo(tuned.lm, short, output_dir=tmp_path / str(end), recipe=recipe, progress=False)
        ids, mask = after.encode(["the cat sat 3."])
        ended[end] = float(after.logits(ids, mask)[0, -1].softmax(-1)[0])
    assert ended[True] > ended[False]
