import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toys import HashScorer

from xlingtox import data
from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Intervention, Offset
from xlingtox.evaluation.comparison import Comparison, compare
from xlingtox.files import _HOST, appearing, writable_folder
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring import Cached

NEURONS = NeuronSet.of([(0, 1), (1, 3)])


def test_writable_folder(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_several_may_ask_for_one_folder_at_once(tmp_path):
    """As the processes of a launcher do."""
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(writable_folder, [tmp_path] * 800)) == {tmp_path}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "runs [1]"
    with appearing(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("a", "utf-8")
        (part / "sub" / "a").chmod(0o600)
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["runs [1]"]
    plain = tmp_path / "plain"
    plain.write_text("", "utf-8")
    assert (target / "sub" / "a").stat().st_mode == plain.stat().st_mode
    with pytest.raises(KeyboardInterrupt), appearing(tmp_path / "other") as part:  # noqa: PT012
        (part / "a").write_text("a", "utf-8")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "plain"]
    with pytest.raises(OSError), appearing(target) as part:
        (part / "b").write_text("b", "utf-8")
    assert [path.name for path in target.iterdir()] == ["sub"]
    assert [path.name for path in target.parent.iterdir()] == ["runs [1]"]


def test_what_a_killed_process_left_is_removed_and_no_others(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".xlingtox-{_HOST}-{gone.pid}-0123abcd.partial", f".xlingtox-{_HOST}-{os.getpid()}-0123abcd.partial"]
    names += [".runs.partial-mine", ".xlingtox-mine.partial", "runs2"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", "utf-8")
    with appearing(tmp_path / "runs"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "runs"])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and a working folder in which none called ~ may come to be."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert os.listdir(tmp_path / "here") == []


def test_a_tilde_is_the_home_folder(lm, home):
    probe = Probe(torch.ones(lm.d_model), bias=0.0, accuracy=1.0, auc=1.0, baseline=0.5, n_train=2, n_held_out=2)
    written = generate(lm, ["the cat"], n_samples=2, max_new_tokens=3, progress=False)
    read = collect_activations(lm, ["the cat"], NEURONS, max_new_tokens=3, progress=False)
    vectors = Offset(NEURONS, 0.5).control_vectors(lm)
    diff = compare(
        *(lm, lm, {"en": ["the cat"]}),
        neurons=NEURONS,
        scorer=HashScorer("en"),
        n_samples=2,
        max_new_tokens=3,
        progress=False,
        output_dir="~/texts",
    )
    saved = {"p": probe, "w": written, "r": read, "v": vectors, "d": diff}
    for name, each in saved.items():
        each.save(f"~/{name}")
    Offset(NEURONS, 0.5).save("~/e", lm)
    assert Probe.load("~/p").direction.equal(probe.direction)
    assert Continuations.load("~/w") == written
    assert torch.equal(Activations.load("~/r").sums, read.sums)
    assert ControlVectors.load("~/v").vectors.keys() == vectors.vectors.keys()
    assert Comparison.load("~/d") == diff
    assert Intervention.load("~/e", lm) == Offset(NEURONS, 0.5)
    baked = Offset(NEURONS, 0.5).bake(lm, output_dir="~/baked")
    assert HookedLM.load("~/baked").fingerprint() == baked.fingerprint()
    Cached(HashScorer("en"), path="~/scores.sqlite").score(["a"], ["en"])
    assert {"texts", "baked", "scores.sqlite"} <= {path.name for path in home.iterdir()}


def test_data_are_read_from_the_home_folder(home):
    Dataset.from_dict({"text": ["a", "b"], "lang": ["en", "en"]}).to_json(home / "rows.jsonl")
    assert len(data.from_columns("~/rows.jsonl", {"language": "lang", "prompt": "text"})) == 2
    (home / "en.txt").write_text("idiot\n", "utf-8")
    assert data.word_lists(Path("~"))["en"] == ["idiot"]
