import dataclasses

import pytest
import torch
from datasets import Dataset
from toys import HashScorer

import xlingtox as xt
from xlingtox.models.generation import generate
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.progress import bar, shown_in

PROMPTS = ["the cat", "the dog", "a"]


class Recorder:
    """A display that notes what it is told: the name, the total and the count of each loop, and how deep it is."""

    def __init__(self) -> None:
        self.loops: list[list] = []
        self.open: list[list] = []

    def begin(self, name, total, unit):
        self.loops.append([name, total, 0, len(self.open)])
        self.open.append(self.loops[-1])
        return self._Loop(self.loops[-1])

    def end(self) -> None:
        self.open.pop()

    class _Loop:
        def __init__(self, row) -> None:
            self.row = row

        def update(self, n=1) -> None:
            self.row[2] += n


@pytest.fixture
def drawn(monkeypatch):
    """The names of the bars that are drawn."""
    names = []
    real = xt.progress.tqdm

    def tqdm(*arguments, **options):
        names.append(options["desc"])
        return real(*arguments, **options)

    monkeypatch.setattr("xlingtox.progress.tqdm", tqdm)
    return names


def test_a_bar_within_a_bar_is_not_drawn(drawn, capsys):
    with bar("outer", total=2) as outer:
        with bar("inner", total=1) as inner:
            inner.update()
            inner.note("a few words")
        outer.update()
        with bar("second", total=1):
            pass
    assert drawn == ["outer"]
    with bar("third"):
        pass
    with bar("fourth", progress=False), bar("fifth"):
        pass
    assert drawn == ["outer", "third", "fifth"]
    with pytest.raises(ZeroDivisionError), bar("sixth"):
        _ = 1 / 0
    with bar("seventh"):
        pass
    assert drawn[-2:] == ["sixth", "seventh"]


def test_a_lone_call_draws_one_bar_and_a_display_hears_of_all(lm, drawn, capsys):
    neurons = NeuronSet.of([(0, 1), (1, 5)])
    held_out = xt.data.as_prompts({"en": PROMPTS})
    table = Dataset.from_dict({"language": ["en"] * 3, "text": [prompt.text + " sat" for prompt in held_out]})
    asked = {"scorer": HashScorer("en"), "held_out": table, "max_new_tokens": 3, "n_random": 1, "unit": "activation"}
    asked["match"] = "layers"
    xt.dose_response(lm, neurons, [-1.0], {"en": PROMPTS}, **asked)
    assert drawn == ["doses"]
    display = Recorder()
    with shown_in(display):
        xt.dose_response(lm, neurons, [-1.0], {"en": PROMPTS}, **asked)
    assert drawn == ["doses"], "nothing but the display shows anything"
    assert not display.open
    assert display.loops[0][:2] == ["doses", 3]
    assert {name for name, *_ in display.loops} == {"doses", "writing", "perplexity"}
    assert all(total == count for _, total, count, _ in display.loops)
    assert {depth for *_, depth in display.loops} == {0, 1}


def test_silence_is_silent(lm, drawn, capsys):
    generate(lm, PROMPTS, n_samples=1, max_new_tokens=2, progress=False)
    assert not drawn
    assert capsys.readouterr() == ("", "")


def test_tuning_shows_the_reading_of_the_reference_before_its_steps(tmp_path, lm, drawn, capsys):
    pairs = [{"prompt": f"the {word}", "chosen": " cat", "rejected": " dog"} for word in "abcdefgh"]
    recipe = dataclasses.replace(xt.tuning.MINI, steps=2, batch_size=3)
    display = Recorder()
    with shown_in(display):
        xt.tune_dpo(lm, pairs, output_dir=tmp_path / "run", recipe=recipe)
    loops = {name: (total, count) for name, total, count, _ in display.loops}
    assert loops["reference log-probabilities"] == (3, 3)
    assert loops["tuning"] == (2, 2)
    names = [name for name, *_ in display.loops]
    assert names.index("reference log-probabilities") < names.index("tuning")
    assert not drawn
    assert torch.isfinite(lm.unembedding()).all()
