import copy
import gc
import json
import weakref
from collections import Counter

import pytest
from conftest import randomised, tiny
from datasets import Dataset
from families import build
from toys import HashScorer, NeverAsked

from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.compare_models import compare, compare_in_turn
from xlingtox.evaluation.weight_drift import weight_drift
from xlingtox.models import text_encoding
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import Journal, using
from xlingtox.neurons import activations, greedy
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {"en": ["the cat", "the dog ran away", "a"], "es": ["la casa", "el gato duerme en"]}
NEURONS = NeuronSet.of([(1, 5), (0, 3), (0, 30), (1, 0)])
HELD_OUT = Dataset.from_dict({"language": ["en", "es"], "text": ["the cat sat on the mat", "la casa es grande"]})
ASKED = {
    "neurons": NEURONS,
    "scorer": HashScorer("en", "es"),
    "held_out": HELD_OUT,
    "n_samples": 2,
    "max_new_tokens": 5,
    "n_random": 2,
    "progress": False,
}


WRITTEN = ["after.greedy.json", "after.json", "before.greedy.json", "before.json"]


def two(family: str):
    """Two models of one shape, as Hugging Face has them."""
    model = build(family)
    return model, randomised(copy.deepcopy(model), seed=1)


@pytest.fixture(scope="module")
def expected(both):
    return compare(*both, PROMPTS, **ASKED)


@pytest.fixture(scope="module")
def both(tokenizer) -> list[HookedLM]:
    return [HookedLM.load(model, tokenizer=tokenizer) for model in two("llama")]


class Loader:
    """Loads models anew, and looks each time whether those that it gave before can be freed."""

    def __init__(self, models, tokenizer) -> None:
        self.models, self.tokenizer = models, tokenizer
        self.alive: list[weakref.ref] = []
        self.order: list[int] = []

    def load(self, i: int):
        def give() -> HookedLM:
            gc.collect()
            assert not [one for one in self.alive if one() is not None], "an earlier model is still referred to"
            lm = HookedLM.load(self.models[i], tokenizer=self.tokenizer)
            self.alive.append(weakref.ref(lm))
            self.order.append(i)
            return lm

        return give


@pytest.mark.parametrize(("family", "text"), [("gpt2", "before"), ("llama", "after"), ("cohere", "own")])
def test_it_is_compare_with_one_model_at_a_time(family, text, tokenizer, tmp_path):
    plain = two(family)
    both = [HookedLM.load(model, tokenizer=tokenizer) for model in plain]
    expected = compare(*both, PROMPTS, text=text, **ASKED)
    loader = Loader(plain, tokenizer)
    found = compare_in_turn(loader.load(0), loader.load(1), PROMPTS, text=text, output_dir=tmp_path, **ASKED)
    assert json.dumps(found.content()) == json.dumps(expected.content())
    assert found == expected
    assert found.drift == weight_drift(*both).by_layer()
    assert loader.order == [0, 1, 0]
    gc.collect()
    assert not [one for one in loader.alive if one() is not None]
    assert sorted(file.name for file in tmp_path.iterdir()) == WRITTEN, "no vectors are left"


@pytest.mark.parametrize("neurons", [NEURONS, {"sources": NEURONS, "control": NEURONS}])
@pytest.mark.parametrize("text", ["before", "own"])
def test_each_model_writes_its_greedy_text_once(neurons, text, both, monkeypatch):
    written = written_by(monkeypatch)
    compare(*both, {"en": PROMPTS["en"]}, **ASKED | {"neurons": neurons, "held_out": None, "text": text})
    assert written == both


@pytest.mark.parametrize("most", [4 * 5 * 5 * 12, 4 * 5 * 5 * 4])
def test_activations_that_are_too_many_to_keep_are_read_again_from_what_was_written(most, both, expected, monkeypatch):
    """All neurons of the layers do not fit, then not even the sets together; the last number is for one set alone."""
    monkeypatch.setattr(activations, "_MOST_BYTES", most)
    written = written_by(monkeypatch)
    found = compare(*both, PROMPTS, **ASKED)
    assert written == both
    assert found.before == expected.before
    for code, sets in expected.activity.changes.items():
        for name, change in sets.items():
            assert found.activity.changes[code][name] == pytest.approx(change, abs=1e-6)
    with Offset(NEURONS, -1.0).on(both[0]):
        compare(*both, PROMPTS, **ASKED)
    assert written.count(both[0]) > 2, "an edit may act on the prompt alone, which one pass would not tell"


def written_by(monkeypatch) -> list[HookedLM]:
    """The models that write greedily, in their order; a long batch would be one entry."""
    written: list[HookedLM] = []
    real = greedy.decode
    monkeypatch.setattr(greedy, "decode", lambda lm, *rest, **how: written.append(lm) or real(lm, *rest, **how))
    return written


@pytest.mark.parametrize("in_turn", [False, True])
def test_each_model_cuts_a_prompt_and_a_held_out_text_into_tokens_once(in_turn, both, monkeypatch):
    cut = Counter()
    real = text_encoding.token_ids
    monkeypatch.setattr(
        text_encoding, "token_ids", lambda tokenizer, texts: cut.update(texts) or real(tokenizer, texts)
    )
    if in_turn:
        compare_in_turn(lambda: both[0], lambda: both[1], PROMPTS, **ASKED)
    else:
        compare(*both, PROMPTS, **ASKED)
    texts = [*(text for of_language in PROMPTS.values() for text in of_language), *HELD_OUT["text"]]
    assert {text: cut[text] for text in texts} == dict.fromkeys(texts, 2)


def test_neurons_of_other_layers_are_read_with_the_rest(both):
    """A set outside the main set's layers, which are those that the control is drawn from."""
    main, other = (NeuronSet.of([(layer, 3), (layer, 8)]) for layer in (0, 1))
    found = compare(*both, PROMPTS, **ASKED | {"neurons": {"main": main, "other": other}})
    for name, neurons in (("main", main), ("other", other)):
        alone = compare(*both, PROMPTS, **ASKED | {"neurons": {"main": main, "control": neurons}})
        for code, sets in alone.activity.changes.items():
            assert found.activity.changes[code][name] == sets["control"]


def test_the_greedy_texts_are_those_of_generate(both, tmp_path):
    compare(*both, PROMPTS, **ASKED, output_dir=tmp_path)
    for lm, side in zip(both, ("before", "after"), strict=True):
        stored = Continuations.load(tmp_path / f"{side}.greedy.json")
        assert stored == generate(lm, PROMPTS, greedy=True, max_new_tokens=5, progress=False)


def test_a_comparison_that_was_interrupted_goes_on(both, expected, tmp_path):
    """Interrupted in the third turn: the first two are not done again."""
    before, after = both
    turns = []

    def first() -> HookedLM:
        turns.append(1)
        if len(turns) == 2:
            raise KeyboardInterrupt
        return before

    journal = Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")
    with using(journal), pytest.raises(KeyboardInterrupt):
        compare_in_turn(first, lambda: after, PROMPTS, **ASKED)
    passes = []
    with pytest.MonkeyPatch.context() as patch, using(journal):
        for name in ("extend", "logits"):
            real = getattr(HookedLM, name)
            patch.setattr(HookedLM, name, lambda lm, *a, real=real, **k: passes.append(lm) or real(lm, *a, **k))
        found = compare_in_turn(lambda: before, lambda: after, PROMPTS, **ASKED)
    assert json.dumps(found.content()) == json.dumps(expected.content())
    assert passes == [before], "it judges what the other wrote"


def test_what_cannot_be_compared_is_refused(both, tokenizer):
    before, after = both
    other = HookedLM.load(tiny("bloom"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="the models differ in shape"):
        compare_in_turn(lambda: before, lambda: other, PROMPTS, **ASKED)
    given = iter([before, after])
    with pytest.raises(ValueError, match=r"before\(\) gave .* at first and then .*: expected the same model"):
        compare_in_turn(lambda: next(given), lambda: after, PROMPTS, **ASKED)
    with pytest.raises(TypeError, match=r"compare_in_turn: after\(\) gave 'mini' .*, expected a HookedLM"):
        compare_in_turn(lambda: before, lambda: "mini", PROMPTS, **ASKED)
    with pytest.raises(ValueError, match="n_random is -1"):
        compare(before, after, PROMPTS, **ASKED | {"n_random": -1, "scorer": NeverAsked("en", "es")})


def test_a_model_under_an_edit_has_no_drift(both, expected):
    before, after = both
    with Offset(NEURONS, -1.0).on(before):
        found = compare_in_turn(lambda: before, lambda: after, {"en": PROMPTS["en"]}, **ASKED | {"held_out": None})
    assert found.drift == ()
    assert expected.drift
    assert "Offset" in found.models[0].edit
