"""Every right form of an argument is accepted: numbers of numpy, rows of any kind, subclasses, functions."""

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from toys import HashScorer

import xlingtox as xt
from xlingtox.checking import checked

TEXTS = {"en": ["the cat sat", "the dog ran"], "es": ["la casa es", "el gato duerme"]}
NEURONS = xt.NeuronSet.of([(0, 3), (1, 5)])
MATRIX = np.array([[0.1, 0.9], [0.4, 0.2]])

WHOLE = [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)]
REAL = [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5)]


@pytest.mark.parametrize("two", WHOLE, ids=lambda value: type(value).__name__)
def test_whole_numbers_of_numpy_and_torch(lm, two):
    written = xt.generate(lm, TEXTS, n_samples=two, max_new_tokens=two, seed=two, batch_size=two, progress=False)
    assert written == xt.generate(lm, TEXTS, n_samples=2, max_new_tokens=2, seed=2, batch_size=2, progress=False)
    json.dumps(written.settings)
    recipe = xt.tuning.Recipe(batch_size=two, learning_rate=0.1, steps=two, seed=two)
    assert json.dumps(dataclasses.asdict(recipe)) == json.dumps(
        dataclasses.asdict(xt.tuning.Recipe(batch_size=2, learning_rate=0.1, steps=2, seed=2))
    )
    settings = xt.study.Settings(k=two, n_samples=two, offsets=[0, two])
    assert settings == xt.study.Settings(k=2, n_samples=2, offsets=(0, 2))
    assert json.loads(json.dumps(dataclasses.asdict(settings)))["offsets"] == [0, 2]
    neurons = xt.NeuronSet.of([(1, two)])
    assert neurons == xt.NeuronSet.of([(1, 2)])
    assert type(neurons.neurons[0][1]) is int
    assert len(xt.mini.prompts(n=two, seed=two)) == 34
    assert lm.value_vectors(np.int64(1)).shape == (48, 32)


@pytest.mark.parametrize("half", REAL, ids=lambda value: type(value).__name__)
def test_numbers_of_numpy_and_torch(lm, half):
    assert xt.Offset(NEURONS, half) == xt.Offset(NEURONS, 0.5)
    assert xt.Offset(NEURONS, [half, 1]) == xt.Offset(NEURONS, (0.5, 1.0))
    assert type(xt.Offset(NEURONS, half).value) is float
    recipe = xt.tuning.Recipe(batch_size=1, learning_rate=half, steps=1)
    assert type(recipe.learning_rate) is float
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["learning_rate"] == 0.5
    xt.generate(lm, ["the cat"], n_samples=1, max_new_tokens=1, temperature=half, top_p=half, progress=False)
    assert xt.evaluation.metrics.toxicity_probability(MATRIX, threshold=half) == 0.5


@pytest.mark.parametrize(
    "mask",
    [
        [True, False],
        (True, False),
        torch.tensor([0.3, -1.0]) > 0,
        np.array([0.3, -1.0]) > 0,
        pd.Series([0.3, -1.0]) > 0,
        [np.True_, np.False_],
        [torch.tensor(True), torch.tensor(False)],
    ],
)
def test_masks(mask):
    assert NEURONS.where(mask) == xt.NeuronSet.of([(0, 3)])


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 3), (1, 5)],
        ((0, 3), (1, 5)),
        [[0, 3], [1, 5]],
        np.array([[0, 3], [1, 5]]),
        torch.tensor([[0, 3], [1, 5]]),
        (pair for pair in [(0, 3), (1, 5)]),
        [(np.int64(0), np.int64(3)), (1, 5)],
        NEURONS,
    ],
)
def test_neurons(pairs):
    neurons = xt.NeuronSet.of(pairs, scores=np.array([0.5, 0.25], dtype=np.float32))
    assert neurons == xt.NeuronSet(((0, 3), (1, 5)), (0.5, 0.25))
    assert json.dumps(neurons.neurons) == "[[0, 3], [1, 5]]"


@pytest.mark.parametrize(
    "prompts",
    [
        ["the cat", "the dog"],
        ("the cat", "the dog"),
        {"en": ["the cat", "the dog"]},
        {"en": ("the cat", "the dog")},
        Dataset.from_dict({"language": ["en"] * 2, "prompt": ["the cat", "the dog"]}),
        Dataset.from_dict({"prompt": ["the cat", "the dog"]})["prompt"],
    ],
)
def test_prompts(lm, prompts):
    written = xt.generate(lm, prompts, n_samples=1, max_new_tokens=2, progress=False)
    assert [prompt.text for prompt in written.prompts] == ["the cat", "the dog"]


def test_rows_of_texts_and_numbers():
    frame = pd.DataFrame({"text": ["one text", "haha haha haha haha haha"], "language": ["en", "en"]})
    for texts in (frame["text"], frame["text"].to_numpy(), tuple(frame["text"]), Dataset.from_pandas(frame)["text"]):
        assert xt.evaluation.degenerate.kinds(texts, frame["language"]) == ["sound", "repeated"]
    for row in ([1, 2, 4], (1.0, 2.0, 4.0), np.array([1, 2, 4]), pd.Series([1, 2, 4]), torch.tensor([1.0, 2.0, 4.0])):
        assert xt.transfer.pearson(row, row).value == pytest.approx(1.0)
    for scores in (MATRIX, MATRIX.tolist(), MATRIX.astype(np.float32), torch.tensor(MATRIX), MATRIX >= 0.5):
        assert 0 < xt.evaluation.metrics.average_toxicity(scores) < 1


def test_paths_and_functions(lm, tmp_path):
    probe = xt.Probe(torch.ones(lm.d_model), 0.0, 0.9, 0.9, 0.5, 8, 2)
    for path in (tmp_path / "a", str(tmp_path / "b")):
        probe.save(path)
        assert torch.equal(xt.Probe.load(path).direction, probe.direction)

    class Identifier:
        def __call__(self, texts):
            return ["es"] * len(texts)

    for identify in (Identifier(), lambda texts: ["es"] * len(texts), Identifier().__call__):
        assert xt.evaluation.degenerate.kinds(["one text"], ["en"], identify_language=identify) == ["wrong language"]


def test_subclasses_and_own_scorers(lm, model, tokenizer):
    class Ours(xt.HookedLM):
        pass

    ours = Ours.load(model, tokenizer=tokenizer)
    assert type(ours) is Ours
    assert xt.collect_activations(ours, TEXTS, NEURONS, max_new_tokens=2, progress=False).mean().shape == (2,)
    again = xt.HookedLM.load(lm.tl, tokenizer=tokenizer)
    comparison = xt.compare(
        lm, again, TEXTS, neurons=NEURONS, scorer=HashScorer("en", "es"), n_samples=1, max_new_tokens=2, progress=False
    )
    assert comparison.scorer.name == "hash"


def test_arrays_of_one_value_agree_in_their_axes(lm):
    good = xt.collect_activations(lm, TEXTS, NEURONS, max_new_tokens=2, progress=False)
    with pytest.raises(TypeError, match=r"Activations: kept is .*\[4, 2, 2\], expected .*, with axes as long as those"):
        dataclasses.replace(good, sums=torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"Activations: steps is .*\[3\], expected .*, with axes as long as those"):
        dataclasses.replace(good, steps=torch.ones(3, dtype=torch.int64))


# --- the mechanism


def test_long_rows_are_not_read_to_their_end():
    class Counting(list):
        read = 0

        def __getitem__(self, place):
            Counting.read += 1
            return super().__getitem__(place)

        def __iter__(self):
            Counting.read += len(self)
            return super().__iter__()

    @checked
    def taking(texts: xt.data.Prompts) -> None:
        pass

    taking(Counting(["a"] * 100_000))
    assert Counting.read < 10
    with pytest.raises(TypeError, match=r"^taking: texts\[0\] is 1 "):
        taking(Counting([1] * 100_000))


def test_nothing_is_done_to_what_is_right():
    """Arguments reach the call as they are, and the call is still itself."""

    @checked
    def returning(rows: list[int], lm: xt.HookedLM | None = None, *more: int, key: str = "a", **rest: Any) -> Any:
        """Its text."""
        return rows, lm, more, key, rest

    rows = [1, 2]
    assert returning(rows, None, 3, 4, key="b", other=5) == (rows, None, (3, 4), "b", {"other": 5})
    assert returning(rows)[0] is rows
    assert (returning.__name__, returning.__doc__) == ("returning", "Its text.")
    assert list(inspect.signature(returning).parameters) == ["rows", "lm", "more", "key", "rest"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'rows'"):
        returning()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        xt.generate(None_=1)


@checked
def _joined(n: int = 1) -> int:
    return n


def test_numbers_are_whole_or_not():
    assert [_joined(value) for value in WHOLE] == [2] * len(WHOLE)
    assert {type(_joined(value)) for value in WHOLE} == {int}
    for wrong in (
        2.0,
        True,
        np.True_,
        "2",
        None,
        np.float64(2),
        torch.tensor(2.0),
        torch.tensor([2]),
        np.array([2]),
        2j,
    ):
        with pytest.raises(TypeError, match=r"^_joined: n is .*, expected a whole number$"):
            _joined(wrong)
