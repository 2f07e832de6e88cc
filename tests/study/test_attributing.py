"""The stage that says where tuning acts: which texts it takes, and when it is left out."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from test_stages import MATERIALS, SETTINGS
from toys import HashScorer

from xlingtox.data import Prompt
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.study import attributing, check, plan, space, stages
from xlingtox.study.costs import Shape
from xlingtox.study.models import Models, ModelSource
from xlingtox.study.settings import OFF_BY_DEFAULT


class Words(HashScorer):
    """Finds the word "bad" toxic."""

    def score(self, texts, languages):
        return np.array([float("bad" in text) for text in texts])


def test_one_toxic_and_one_sound_text_is_taken_after_each_prompt():
    """Prompts without a toxic text, and languages with a single one, are left out; halves take turns."""
    prompts = [Prompt("en", str(i)) for i in range(6)] + [Prompt("es", "a"), Prompt("de", "b"), Prompt("de", "c")]
    texts = [[" good", " bad 0"], [" good", " fine"], [" bad 2", " bad too"], [" bad 3", " good"], [" bad", " ..."]]
    texts += [["", " bad 5"], [" bad", " good"], [" bad d", "no " * 9], [" bad e", " gut so"]]
    written = Continuations(tuple(prompts), 2, tuple(text for pair in texts for text in pair), {"seed": 0})
    first, second, sound = attributing.choose(written, Words("en", "es", "de"), n=4)
    assert [prompt.text for prompt in first.prompts] == ["0", "3", "b"]
    assert first.texts == (" bad 0", " bad 3", " bad d")
    assert [prompt.text for prompt in second.prompts] == ["2", "4", "c"]
    assert second.texts == (" bad 2", " bad", " bad e")
    assert ([prompt.text for prompt in sound.prompts], sound.texts) == (["c"], (" gut so",))
    assert attributing.choose(written, Words("en", "es", "de"), n=1) is None


def test_it_is_left_out_where_two_models_do_not_fit(lm, tmp_path, monkeypatch):
    shape = Shape.of(lm)
    assert space.both_fit(shape, 3 * shape.weight_bytes)
    assert not space.both_fit(shape, 2 * shape.weight_bytes)
    monkeypatch.setattr(space, "both_fit", lambda *_: False)
    found = check.check(lm, MATERIALS, SETTINGS, output_dir=tmp_path, progress=False)
    assert list(found.stages) == [name for name in stages.WORK if name != "attribute" and name not in OFF_BY_DEFAULT]
    assert plan.LEFT_OUT in found.notes


def test_models_are_kept_together_until_one_is_asked_for(monkeypatch):
    loaded = {"dtype": None, "device": None, "chat": None}
    monkeypatch.setattr(HookedLM, "load", lambda source, **_: SimpleNamespace(source=source, **loaded))
    models = Models(ModelSource("base"))
    models.tuned_in(Path("tuned"))
    base, tuned = models.both()
    assert (base.source, tuned.source) == ("base", Path("tuned"))
    assert models.both() == (base, tuned)
    assert models.tuned() is tuned
    assert models.base() is not base
