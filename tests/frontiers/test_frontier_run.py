import dataclasses
import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from datasets import Dataset
from toys import HashScorer, NeverAsked, value_or_refusal

from xlingtox import frontier
from xlingtox.data import as_prompts
from xlingtox.edits.interventions import Intervention, Offset, Scale
from xlingtox.edits.steering import Project, Steer
from xlingtox.evaluation import knowledge_margins, metrics, soundness
from xlingtox.evaluation.fluency import conditional_perplexity, held_out_losses
from xlingtox.frontiers import asked, costs
from xlingtox.methods import Fitted, Method
from xlingtox.models import generation
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import Journal, using
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import UncoveredLanguage

PROMPTS = Dataset.from_list(
    [
        {"language": code, "prompt": f"{word} {number}", "index": number}
        for code, word in (("en", "the cat"), ("es", "la casa"))
        for number in (4, 1, 7)
    ]
)
HELD_OUT = Dataset.from_dict(
    {
        "language": ["en", "es", "de"] * 4,
        "text": [f"{text} {n}" for n in "abcd" for text in ("the cat is", "la casa es", "das ist")],
    }
)
LABELLED = [{"text": "the dog", "label": 1}, {"text": "the house", "label": 0}]
PARALLEL = {"en": ["the cat sat", "the dog ran", "a house"], "es": ["el gato duerme", "un perro", "la casa es"]}
NEURONS = NeuronSet.of([(0, 3), (0, 9), (1, 5)])
SCORERS = {"first": HashScorer("en", "es"), "second": HashScorer("en", "es", "de")}
token_seconds, baked = costs.token_seconds, costs.baked
SIZES = {"n_samples": 2, "max_new_tokens": 5}


@dataclass(frozen=True)
class Lowered(Method):
    name: str = field(default="lowered", kw_only=True)
    citation: str = field(default="nobody", kw_only=True)

    def fit(self, lm, labelled, *, seed=0, progress=True):
        return Fitted.of(self, lambda strength: Offset(NEURONS, -strength))


@dataclass(frozen=True)
class Other(Method):
    """Another model: the same with a few neurons scaled, on or off."""

    model: HookedLM
    name: str = field(default="other", kw_only=True)
    citation: str = field(default="nobody", kw_only=True)
    dial: str = field(default="switch", kw_only=True)

    def fit(self, lm, labelled, *, seed=0, progress=True):
        return Fitted.of(self, lambda strength: self.model)


@dataclass(frozen=True)
class NeverFitted(Lowered):
    def fit(self, lm, labelled, *, seed=0, progress=True):
        raise AssertionError("work had begun")


def run(lm, **options):
    given = {"labelled": LABELLED, "scorer": SCORERS, "held_out": HELD_OUT, "methods": [Lowered()], **SIZES, **options}
    return frontier(lm, given.pop("prompts", PROMPTS), progress=False, **given)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Let no run time and bake: each price is another one. `test_costs` asks for both by itself."""
    with pytest.MonkeyPatch.context() as patched:
        numbers = itertools.count(1)
        patched.setattr(costs, "token_seconds", lambda *arguments: float(next(numbers)))
        patched.setattr(costs, "baked", lambda *arguments: "")
        yield


@pytest.fixture(scope="module")
def other(lm):
    return Scale(NEURONS, 0.5).bake(lm)


@pytest.fixture(scope="module")
def measured(lm, other):
    return run(lm, methods=[Lowered(), Other(other)], parallel=PARALLEL)


def by_hand(lm, model, point):
    """Check a point of this model by calls of its own, with hooks already set."""
    prompts = PROMPTS
    own = generate(lm, prompts, **SIZES, progress=False)
    held_out = HELD_OUT.select([i for i, code in enumerate(HELD_OUT["language"]) if code != "de"])
    reference = soundness.Reference.measure(lm, own, held_out, progress=False)
    edit = model if isinstance(model, Intervention) else Offset(NEURONS, 0.0)
    runs = lm if isinstance(model, Intervention) else model
    with edit.on(runs):
        written = generate(runs, prompts, **SIZES, progress=False)
        losses = held_out_losses(runs, held_out, progress=False)
        known = knowledge_margins(runs, PARALLEL, progress=False)
    fluency = conditional_perplexity(lm, written, progress=False)
    kinds = np.array(soundness.kinds(written, fluency, reference)).reshape(6, 2)
    scores = SCORERS["first"].score(written.texts, written.row_languages).reshape(6, 2)
    for code, rows in (("en", slice(0, 3)), ("es", slice(3, 6))):
        for judge in SCORERS:
            np.testing.assert_allclose(point.toxicity[judge][code], scores[rows].mean(1))
        np.testing.assert_array_equal(point.degenerate[code], (kinds[rows] != "sound").mean(1))
        np.testing.assert_array_equal(point.kinds["gibberish"][code], (kinds[rows] == "gibberish").mean(1))
        tokens = [lm.token_ids(list(written.texts[2 * i : 2 * i + 2])) for i in range(6)]
        expected = metrics.prompt_distinct_per_unigram(tokens, n=2)
        np.testing.assert_array_equal(point.distinct[code], expected[rows])
        np.testing.assert_allclose(point.losses[code][0], losses[code][0], rtol=1e-6)
        np.testing.assert_array_equal(point.losses[code][1], losses[code][1])
    np.testing.assert_allclose(point.knowledge["es"], known["es"], rtol=1e-5, atol=1e-6)
    assert sum(shares["en"].sum() for shares in point.kinds.values()) == pytest.approx(3)


def test_points_equal_calls_of_each_edit_alone(lm, measured):
    by_hand(lm, lm, measured.unedited)
    curve = measured.curves[0]
    for point in (curve.points[0], curve.points[-1]):
        by_hand(lm, Offset(NEURONS, -point.strength), point)


def test_another_model_is_measured_as_itself_and_judged_by_the_unedited_one(lm, other, measured):
    curve = measured.curves[1]
    assert (curve.name, curve.dial, curve.citation, curve.baked) == ("other", "switch", "nobody", "")
    assert curve.token_seconds != measured.curves[0].token_seconds
    (point,) = curve.points
    assert point.strength == 1
    by_hand(lm, other, point)


def test_the_result_says_what_was_asked(lm, measured):
    assert measured.judges == ("first", "second")
    assert measured.scorers["second"].languages == ("en", "es", "de")
    assert measured.budgets == (1.05, 1.1, 1.2)
    assert measured.meanings == {"en": [4, 1, 7], "es": [4, 1, 7]}
    # Translations are in one half, and every second text in the other.
    assert measured.halves.prompts["en"].tolist() == measured.halves.prompts["es"].tolist()
    assert measured.halves.texts["es"].tolist() == [0, 1, 0, 1]
    assert measured.model == lm.identity()
    assert (measured.n_samples, measured.source_language) == (2, "en")
    assert set(measured.at_budget(1.1)["method"]) == {"lowered", "other"}
    single = run(lm, scorer=SCORERS["first"], budgets=[1.3, 1.02])
    assert (single.judges, single.budgets) == (("hash",), (1.02, 1.3))


def test_a_killed_call_goes_on_to_an_identical_result(lm, other, tmp_path, monkeypatch):
    methods = [Lowered(), Other(other)]
    decode, n_batches, most = generation.decode, [0], [math.inf]

    def counted(*arguments, **options):
        if n_batches[0] == most[0]:
            raise KeyboardInterrupt
        n_batches[0] += 1
        return decode(*arguments, **options)

    monkeypatch.setattr(generation, "decode", counted)
    expected = run(lm, methods=methods)
    n_all, n_batches[0], most[0] = n_batches[0], 0, n_batches[0] - 1
    with using(Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")):
        with pytest.raises(KeyboardInterrupt):
            run(lm, methods=methods)
        most[0] = math.inf
        resumed = run(lm, methods=methods)
        assert n_batches[0] == n_all >= 3
        again = run(lm, methods=methods)
        # Nothing is written twice, and times are those of the first run.
        assert n_batches[0] == n_all
        assert again == resumed
    assert timeless(resumed) == timeless(expected)


def timeless(result):
    curves = [dataclasses.replace(curve, fit_seconds=0.0, token_seconds=1.0) for curve in result.curves]
    return dataclasses.replace(result, curves=tuple(curves))


REFUSALS = {
    "no methods": ({"methods": []}, "there are no methods to compare"),
    "one name twice": ({"methods": [NeverFitted(), NeverFitted()]}, "two methods are called 'lowered'"),
    "the model's name": ({"methods": [NeverFitted(name="unedited")]}, "a method is called 'unedited'"),
    "a budget of less than 1": ({"budgets": [1.1, 0.9]}, "a budget is 0.9: expected multiples above 1"),
    "no budgets": ({"budgets": []}, "there are no budgets"),
    "one label": ({"labelled": LABELLED[:1]}, "both classes are needed"),
    "no scorer": ({"scorer": {}}, "there is no scorer"),
    "no held-out text": ({"held_out": HELD_OUT.select([0, 3])}, "fewer than two held-out texts in es"),
    "one prompt": ({"prompts": {"en": ["a", "b"], "es": ["c"]}}, "fewer than two prompts in es"),
    "no source": ({"source_language": "de"}, "there are no prompts in de, the source language"),
    "no samples": ({"n_samples": 0}, "n_samples is 0"),
    "no translations": ({"parallel": {"en": ["a"], "es": ["b", "c"]}}, "es"),
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_bad_input_is_refused_in_one_line_before_any_work(lm, monkeypatch, options, message):
    def never(*arguments, **options):
        raise AssertionError("work had begun")

    monkeypatch.setattr(HookedLM, "logits", never)
    monkeypatch.setattr(HookedLM, "extend", never)
    given = {"methods": [NeverFitted()], "scorer": NeverAsked("en", "es")} | options
    _, refusal = value_or_refusal(lambda: run(lm, **given))
    assert message in refusal


def test_a_tuned_model_of_another_shape_is_refused(lm, tokenizer, base):
    stranger = HookedLM.load(base[0], tokenizer=tokenizer)
    _, refusal = value_or_refusal(lambda: run(lm, methods=[NeverFitted()], tuned=stranger))
    assert "differ in shape" in refusal


def test_an_edited_model_and_what_is_no_method_are_refused(lm):
    with pytest.raises(TypeError, match="methods"):
        run(lm, methods=[Offset(NEURONS, 1.0)])
    with Offset(NEURONS, 1.0).on(lm):
        _, refusal = value_or_refusal(lambda: run(lm, methods=[NeverFitted()]))
        lm.logits(*lm.encode(["the cat"]))
    assert "methods do not show" in refusal


def test_a_scorer_that_does_not_cover_a_language_is_refused(lm):
    with pytest.raises(UncoveredLanguage, match="does not cover es: it covers en"):
        run(lm, methods=[NeverFitted()], scorer={"a": NeverAsked("en", "es"), "b": NeverAsked("en")})


def test_of_all_methods_those_that_the_model_cannot_take_are_left_out_with_a_warning(lm, monkeypatch):
    class Refusing(Lowered):
        def fit(self, lm, labelled, *, seed=0, progress=True):
            raise ValueError("no such site")

    class Long(Lowered):
        def fit(self, lm, labelled, *, seed=0, progress=True):
            prefixed = lm.prefixed(55 * "the ")
            return Fitted.of(self, lambda strength: prefixed)

    some = (Refusing(name="refusing"), Long(name="long", dial="switch"), Lowered())
    monkeypatch.setattr(asked, "default_methods", lambda tuned: some)
    with pytest.warns(UserWarning, match="is left out") as warned:
        measured = run(lm, methods=None)
    assert measured.methods == ("lowered",)
    assert len(warned) == 2
    assert str(warned[0].message) == "refusing is left out: no such site"
    with pytest.raises(ValueError, match="no such site"):
        run(lm, methods=some[:1])


def names(lm, **options):
    """The names of the methods that would be compared."""
    prompts = as_prompts(PROMPTS, tokenizer=lm.tokenizer)
    given = {"labelled": LABELLED, "scorer": SCORERS, "held_out": HELD_OUT, "budgets": [1.1], "parallel": None}
    given |= {"source_language": "en", "generation": {**SIZES, "seed": 0}, "methods": None, "tuned": None} | options
    return [method.name for method in asked.Asked.of(lm, prompts, **given).methods]


def test_tuned_models_take_part_under_their_names(lm, other):
    untuned = names(lm)
    assert "DPO" not in untuned
    assert len(untuned) == len(set(untuned)) == 14
    of_tuned = ["offset of attributed neurons", "DPO"]
    assert names(lm, tuned=other) == [*untuned[:-2], *of_tuned, *untuned[-2:]]
    assert names(lm, tuned={"SFT": other, "KTO": other})[-4:-2] == ["SFT", "KTO"]
    assert names(lm, tuned={"SFT": other}, methods=[Lowered()]) == ["lowered", "SFT"]


def test_costs(lm, other, monkeypatch):
    prompts = list(generate(lm, PROMPTS, greedy=True, max_new_tokens=1, progress=False).prompts)
    assert token_seconds(lm, Offset(NEURONS, 1.0), prompts) > 0
    assert token_seconds(lm, other, prompts) > 0
    assert baked(lm, Offset(NEURONS, 1.0)) == baked(lm, other) == ""
    direction = lm.unembedding()[3]
    assert baked(lm, Steer(direction, 0, 1.0)) == ""
    assert "cannot be baked" in baked(lm, Project(direction, 0))
    monkeypatch.setattr(costs, "free_bytes", lambda device: 100)
    assert "too little memory" in baked(lm, Offset(NEURONS, 1.0))
    assert "is not in the weights" in baked(lm, lm.prefixed("the dog"))
