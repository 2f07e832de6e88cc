"""Side effects: each measure is computed by hand too, and verdicts wait for the interval and the correction."""

import copy
import dataclasses
import gc
import itertools
import math
import sys
import weakref
from typing import ClassVar

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from toys import value_or_refusal

import xlingtox as xt
from xlingtox.data import Prompt
from xlingtox.evaluation import SideEffect, SideEffects, harness, side_effects, side_effects_in_turn, side_effects_rows
from xlingtox.evaluation.harness import Metric, Ran
from xlingtox.models.identity import Identity

TEXTS = {
    "en": ["the cat sat", "the house and the mat ran away", "the dog ran", "the cat and the dog", "the mat ran"],
    "es": ["la casa es grande", "el gato duerme en la cama", "la cama es", "el gato es grande"],
}
HELD_OUT = Dataset.from_list([{"language": code, "text": text} for code, texts in TEXTS.items() for text in texts])
PROMPTS = {"en": ["the cat", "the dog", "the house"], "es": ["la casa", "el gato"]}
EDIT = xt.Offset(xt.NeuronSet.of([(0, 3), (1, 7)]), 6.0)
SAMPLING = {"n_samples": 4, "max_new_tokens": 6, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def found(lm):
    return side_effects(lm, (lm, EDIT), held_out=HELD_OUT, prompts=PROMPTS, **SAMPLING)


def losses(model, tokenizer, texts):
    """The sum of each text's losses in a plain pass, and its number of tokens but the first."""
    sums, counts = [], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        chances = raw.forward(model, ids).logits[0].double().log_softmax(-1)
        sums.append(-sum(float(chances[i - 1, ids[0, i]]) for i in range(1, ids.shape[1])))
        counts.append(ids.shape[1] - 1)
    return np.array(sums), np.array(counts)


def test_perplexity_is_that_of_plain_passes(found, lm, model, tokenizer):
    table = found.to_frame().set_index(["measure", "language"])
    baked = EDIT.bake(lm).unwrapped()
    for code, texts in TEXTS.items():
        sums, counts = losses(model, tokenizer, texts)
        then, _ = losses(baked, tokenizer, texts)
        row = table.loc["perplexity", code]
        assert row.before == pytest.approx(np.exp(sums.sum() / counts.sum()), rel=1e-4)
        assert row.after == pytest.approx(np.exp(then.sum() / counts.sum()), rel=1e-4)
        assert row.change == row.after - row.before
        assert row.low < row.change < row.high
        assert row.n == len(texts)


def test_the_interval_of_a_perplexity_is_that_of_resampled_texts():
    """As many texts as make the bootstrap of the pooled ratio a fair witness."""
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 40, 400)
    before = counts * rng.normal(3.0, 0.4, 400)
    after = before + counts * rng.normal(0.05, 0.1, 400)
    (pending,) = side_effects_rows.of_texts({"en": (before, counts)}, {"en": (after, counts)})
    (row,) = pending.rows(2000)
    draws = []
    for _ in range(2000):
        drawn = rng.integers(0, 400, 400)
        of = [np.exp(side[drawn].sum() / counts[drawn].sum()) for side in (before, after)]
        draws.append(of[1] - of[0])
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (row.low, row.high) == (pytest.approx(low, rel=0.12), pytest.approx(high, rel=0.12))
    assert row.p_value < 0.01


def the_module():
    """The module of the call, which has its name."""
    return sys.modules[side_effects.__module__]


def test_measures_of_continuations_by_hand(found, lm, tokenizer):
    table = found.to_frame().set_index(["measure", "language"])
    with EDIT.on(lm):
        after = xt.generate(lm, PROMPTS, **SAMPLING)
    for code in PROMPTS:
        rows = [i for i, prompt in enumerate(after.prompts) if prompt.language == code]
        tokens = [[tokenizer(after.texts[4 * i + j])["input_ids"] for j in range(4)] for i in rows]
        lengths = [np.mean([len(ids) for ids in samples]) for samples in tokens]
        assert table.after["answer_length", code] == pytest.approx(np.mean(lengths))
        shares = []
        for samples in tokens:
            pairs = [pair for ids in samples for pair in itertools.pairwise(ids)]
            shares.append(len(set(pairs)) / len(pairs))
        assert table.after["distinct_2", code] == pytest.approx(np.mean(shares))
        assert table.n["answer_length", code] == len(rows)
    assert found.measures == (
        *("perplexity", "distinct_1", "distinct_2", "distinct_3"),
        *("language_kept", "answer_length"),
    )
    assert found.models[1].edit is not None


def test_language_kept_by_hand(tokenizer):
    prompts = (Prompt("en", "a"), Prompt("en", "b"), Prompt("ru", "c"))
    texts = ("the cat", "кот сидит на коврике", " ", "кот сидит тут", " ", ".", "кот сидит", "the cat sat here")
    written = xt.Continuations((*prompts, Prompt("ru", "d")), 2, texts)
    values = side_effects_rows.of_continuations(written, tokenizer, None)["language_kept"]
    assert values["en"].tolist() == [0.5, 0.0]
    assert math.isnan(values["ru"][0])
    assert values["ru"][1] == 0.5
    told = side_effects_rows.of_continuations(written, tokenizer, lambda texts: ["de"] * len(texts))["language_kept"]
    assert told["en"].tolist() == [0.0, 0.0]


def test_a_baked_model_has_the_rows_of_the_hooked_one(found, lm):
    baked = side_effects(lm, EDIT.bake(lm), held_out=HELD_OUT, prompts=PROMPTS, **SAMPLING)
    for one, other in zip(found.rows, baked.rows, strict=True):
        assert (one.measure, one.language, one.n) == (other.measure, other.language, other.n)
        numbers = [(row.before, row.after, row.low, row.high) for row in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)


def made(*rows):
    """Rows of one measure, each with its ends and its p-value."""
    model = Identity("mini", None, "float32", "abc")
    return SideEffects(
        tuple(
            SideEffect(name, code, 0.5, 0.5 + (low + high) / 2, low, high, p_value, 40, direction)
            for name, code, low, high, p_value, direction in rows
        ),
        (model, dataclasses.replace(model, fingerprint="def")),
    )


def test_verdicts_want_the_interval_and_the_corrected_test():
    effects = made(
        ("a", "en", -0.4, -0.2, 0.0005, "higher"),
        ("a", "es", 0.2, 0.4, 0.0005, "higher"),
        ("b", "en", 0.2, 0.4, 0.0005, "lower"),
        ("c", "en", -0.4, -0.2, 0.0005, "neither"),
        ("c", "es", -0.4, 0.1, 0.0005, "neither"),
        ("d", "en", 0.01, 0.3, 0.06, "higher"),
        ("d", "es", math.nan, math.nan, math.nan, "higher"),
    )
    assert effects.verdicts == ("worse", "better", "worse", "fell", "", "", "")
    assert effects.corrected[:6] == pytest.approx((0.003, 0.003, 0.003, 0.003, 0.003, 0.06))
    # Alone, the row of .04 stands; beside another that does not, it no longer does.
    row = ("d", "en", 0.01, 0.3, 0.04, "higher")
    assert made(row).verdicts == ("better",)
    assert made(row, ("e", "en", -0.1, 0.3, 0.5, "higher")).verdicts == ("", "")
    assert repr(effects).startswith("SideEffects(4 measures in 2 languages: 2 worse, 1 better)")


def test_many_rows_can_still_be_found_worse(lm, monkeypatch):
    """Holm multiplies a p-value by the number of rows, so that there must be draws enough."""
    items = tuple(map(str, range(16)))
    before, after = (
        {
            (f"task {number}", "acc", code): Metric(
                f"task {number}", "acc", code, items, (value,) * 16, None, True, math.nan
            )
            for number in range(6)
            for code in xt.languages.CODES
        }
        for value in (1.0, 0.0)
    )
    runs = iter([Ran(before, (), 0), Ran(after, (), 0)])
    monkeypatch.setattr(the_module(), "LoadedTasks", lambda tasks, **options: Ready(runs))
    effects = side_effects(lm, lm, tasks=["task"], progress=False)
    assert effects.verdicts == ("worse",) * 6 * 17
    assert max(effects.corrected) > 0.02


class Ready:
    """Tasks that have been run already."""

    versions: ClassVar[dict[str, str]] = {}
    n_shots = limit = None

    def __init__(self, runs):
        self.runs = runs

    def run(self, lm, **options):
        return next(self.runs)


def test_doubts_say_which_tasks_cannot_get_worse():
    def ran(values, chance):
        metric = Metric("t", "acc", "en", ("1", "2", "3", "4"), values, None, True, chance)
        return Ran({("t", "acc", "en"): metric}, ("t bleu",), 3)

    doubts = side_effects_rows.doubts
    sentences = list(doubts(ran((1.0, 0.0, 1.0, 0.0), 0.25), ran((1.0, 0.0, 1.0, 0.0), 0.25)))
    assert sentences == [
        "t, English: the model before has acc 0.50 on 4 items, and guessing gives 0.25, so this task cannot show that "
        "it got worse.",
        "Without a value for each item, and so left out: t bleu.",
        "3 texts of the tasks are longer than the model's context, which has only their end.",
    ]
    assert "acc 0 on all items" in next(doubts(ran((0.0,) * 4, math.nan), ran((0.0,) * 4, math.nan)))
    fine = Ran(
        {("t", "acc", "en"): Metric("t", "acc", "en", tuple("abcdefghij"), (1.0,) * 10, None, True, 0.25)}, (), 0
    )
    assert list(doubts(fine, fine)) == []


def test_kept_in_a_file_and_shown(found, tmp_path):
    found.save(tmp_path / "effects.json")
    assert SideEffects.load(tmp_path / "effects.json") == found
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match=r"none\.json"):
        SideEffects.load(tmp_path / "none.json")
    effects = made(("<b>task</b>: acc", "en", -0.4, -0.2, 0.0005, "higher"), ("b", "en", 0.1, 0.2, 0.0005, "higher"))
    page = effects._repr_html_()
    assert "<b>" not in page
    assert "▼\u00a0worse" in page
    assert "▲\u00a0better" in page
    figure = xt.plot(effects)
    assert figure == xt.figures.side_effects(effects)
    drawn = {(mark.name, mark.yaxis): mark.y for mark in figure.data if mark.y}
    assert drawn == {("worse", "y"): (pytest.approx(-0.3),), ("better", "y2"): (pytest.approx(0.15),)}
    assert "<b>" not in figure.layout.annotations[0].text
    with pytest.raises(ValueError, match="nothing was measured"):
        xt.plot(made())


def test_the_same_model_twice_is_said(lm):
    effects = side_effects(lm, lm, held_out=HELD_OUT, progress=False)
    assert effects.warnings[0].startswith("Both sides are ")
    assert effects.verdicts == ("", "")
    assert {row.change for row in effects.rows} == {0.0}


def test_refusals_come_from_continuations_of_both_kinds_of_requests(lm, monkeypatch):
    rows = [
        {"prompt": "the cat", "language": "en", "harmful": False},
        {"prompt": "the dog", "language": "en", "harmful": True},
        {"prompt": "the house", "language": "en", "harmful": False},
    ]
    seen = []

    def shares(continuations, requests, *, judge):
        seen.append((continuations.n_samples, requests, judge))
        return np.array([0.25, 1.0, 0.75]) if len(seen) == 1 else np.array([0.5, 0.5, 1.0])

    monkeypatch.setattr(side_effects_rows, "refusal_shares", shares)
    effects = side_effects(lm, (lm, EDIT), requests=rows, **SAMPLING)
    found = {row.measure: (row.before, row.after, row.n, row.direction) for row in effects.rows}
    assert found == {"refused_harmless": (0.5, 0.75, 2, "lower"), "refused_harmful": (1.0, 0.5, 1, "higher")}
    assert seen == [(4, rows, None)] * 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "nothing to measure: give tasks=, prompts=, held_out= or requests="),
        ({"prompts": ["the cat"], "n_samples": 0}, "n_samples is 0"),
        ({"prompts": ["the cat " * 60]}, "room for"),
        ({"prompts": []}, "no prompts"),
        ({"held_out": Dataset.from_list([{"text": "a"}])}, "language"),
        ({"requests": [{"prompt": "the cat", "language": "en"}]}, "harmful"),
        ({"requests": [{"prompt": "the cat", "language": "en", "harmful": "yes"}]}, "harmful='yes'"),
    ],
)
def test_bad_input_is_refused_before_any_work(lm, monkeypatch, arguments, line):
    monkeypatch.setattr(type(lm), "logits", lambda *args, **kwargs: pytest.fail("work had begun"))
    _, refusal = value_or_refusal(lambda: side_effects(lm, (lm, EDIT), progress=False, **arguments))
    assert line in refusal


def test_an_edit_that_does_not_fit_and_a_missing_package(lm, monkeypatch):
    with pytest.raises(ValueError, match="layer"):
        side_effects(lm, (lm, xt.Offset(xt.NeuronSet.of([(9, 0)]), 1.0)), held_out=HELD_OUT, progress=False)
    monkeypatch.setattr(harness, "_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ImportError, match=r"pip install 'xlingtox\[harness\]'"):
        side_effects(lm, lm, tasks=["arc_easy"], progress=False)


@pytest.fixture(scope="module")
def talkers(model, tokenizer):
    """One model asked as a chat model, and as one that continues text."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    lm = xt.HookedLM.load(model, tokenizer=other, chat=True)
    return lm, lm.with_chat(False)


def test_each_model_is_asked_in_its_own_form(talkers, monkeypatch):
    """A chat model answers prompts and requests as messages."""
    asked = []

    def generate(lm, prompts, **how):
        asked.append([prompt.text for prompt in prompts])
        return xt.generate(lm, prompts, **how)

    monkeypatch.setattr(the_module(), "generate", generate)
    rows = [{"language": "en", "prompt": "the dog", "harmful": False}]
    effects = side_effects(*talkers, prompts=["the cat"], requests=rows, **SAMPLING)
    assert asked == [["[the cat]:"], ["[the dog]:"], ["the cat"], ["the dog"]]
    assert [model.chat for model in effects.models] == ["chat", None]
    assert "refused_harmless" in effects.measures


def test_in_turn_each_model_is_let_go_before_the_next(found, lm, model, tokenizer):
    baked, given, n_alive = EDIT.bake(lm), [], []

    def fresh(raw_model):
        gc.collect()
        n_alive.append(sum(other() is not None for other in given))
        loaded = xt.HookedLM.load(raw_model, tokenizer=tokenizer)
        given.append(weakref.ref(loaded))
        return loaded

    models = lambda: fresh(model), lambda: fresh(baked.unwrapped())
    in_turn = side_effects_in_turn(*models, held_out=HELD_OUT, **SAMPLING)
    assert n_alive == [0, 0, 0]  # to check, to measure before, and to measure after
    rows = [row for row in found.rows if row.measure == "perplexity"]
    for row, other in zip(rows, in_turn.rows, strict=True):
        assert (row.before, row.after) == pytest.approx((other.before, other.after), rel=1e-4)
    with pytest.raises(ValueError, match="nothing to measure"):
        side_effects_in_turn(lambda: lm, lambda: baked)


def test_what_was_not_said_stays_unsaid_in_a_file(tmp_path):
    effects = dataclasses.replace(made(("a", "en", -0.4, -0.2, 0.0005, "higher")), settings={"n_shots": None})
    effects.save(tmp_path / "effects.json")
    assert SideEffects.load(tmp_path / "effects.json") == effects
