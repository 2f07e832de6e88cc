import json
import os
import signal
import sqlite3
import time
import warnings
from contextlib import closing

import numpy as np
import pytest
from conftest import HookedLM
from datasets import Dataset
from families import build

from xlingtox import databases
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.fluency import conditional_perplexity, held_out_losses
from xlingtox.models.ending import ending_probability
from xlingtox.models.generation import generate
from xlingtox.models.journal import Journal, once, using
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {
    "en": ["the cat", "the dog ran away", "a", "the house and"],
    "es": ["la casa", "el gato duerme en", "una"],
    "ru": ["кот", "кот сидит"],
}
NEURONS = NeuronSet.of([(1, 5), (0, 3), (0, 30), (1, 0)])
HELD_OUT = Dataset.from_dict(
    {
        "language": ["ru", "en", "en", "es", "en", "es"],
        "text": ["кот сидит на", "the cat sat", "the house and the mat", "la casa es grande", "a dog", "el gato"],
    }
)
N_BATCHES = {"sampled": 5, "greedy": 5, "activations": 5, "fluency": 9, "held_out": 3, "ending": 5}


@pytest.fixture(scope="module", params=["gpt2", "llama", "cohere"])
def lm(request, tokenizer) -> HookedLM:
    return HookedLM.load(build(request.param), tokenizer=tokenizer)


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")


def work(lm: HookedLM, task: str):
    """One call of several batches."""
    sizes = {"max_new_tokens": 4, "progress": False}
    if task == "sampled":
        return generate(lm, PROMPTS, n_samples=2, batch_size=4, seed=3, **sizes)
    if task == "greedy":
        return generate(lm, PROMPTS, greedy=True, batch_size=2, **sizes)
    if task == "activations":
        return collect_activations(lm, PROMPTS, NEURONS, batch_size=2, **sizes)
    if task == "fluency":
        written = generate(lm, PROMPTS, n_samples=2, seed=1, **sizes)
        return conditional_perplexity(lm, written, batch_size=2, progress=False)
    if task == "held_out":
        return held_out_losses(lm, HELD_OUT, batch_size=2, progress=False)
    return ending_probability(lm, PROMPTS, batch_size=2, progress=False)


def in_bytes(result) -> bytes:
    """All bits of a result."""
    if isinstance(result, dict):
        return b"".join(np.asarray(part).tobytes() for key in result for part in np.atleast_1d(result[key]))
    parts = [getattr(result, name, None) for name in ("texts", "kept", "sums", "squares", "mask", "values", "n_tokens")]
    return b"".join(
        part.numpy().tobytes() if hasattr(part, "numpy") else repr(part).encode() for part in parts if part is not None
    )


class Passes:
    """Counts batches, by the passes over whole prompts or texts, and interrupts the one of a given number."""

    def __init__(self, patch, stop_at: int | None = None, stop=None) -> None:
        self.n = 0
        for name in ("extend", "logits"):
            patch.setattr(HookedLM, name, self._counting(getattr(HookedLM, name), stop_at, stop))

    def _counting(self, real, stop_at, stop):
        def call(lm, *arguments, **options):
            if options.get("cache") is None:
                if self.n == stop_at:
                    stop()
                self.n += 1
            return real(lm, *arguments, **options)

        return call


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("task", N_BATCHES)
def test_an_interrupted_call_goes_on_where_it_was_and_gives_the_same_bits(lm, task, journal, monkeypatch):
    with monkeypatch.context() as patch:
        whole = Passes(patch)
        expected = work(lm, task)
    # Perplexities of continuations: their generation is a batch too.
    first = whole.n - N_BATCHES[task]
    with monkeypatch.context() as patch, using(journal):
        Passes(patch, first + 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            work(lm, task)
    with monkeypatch.context() as patch, using(journal):
        resumed = Passes(patch)
        found = work(lm, task)
    assert found == expected if task not in ("held_out", "ending") else True
    assert in_bytes(found) == in_bytes(expected)
    assert resumed.n == whole.n - first - 2, "what was done is not done again"
    with monkeypatch.context() as patch, using(journal):
        again = Passes(patch)
        assert in_bytes(work(lm, task)) == in_bytes(expected)
    assert again.n == 0
    with monkeypatch.context() as patch:
        without = Passes(patch)
        work(lm, task)
    assert without.n == whole.n, "a journal that is not in use is not read"


def in_child(do) -> int:
    """Fork a process that does something, and return its number. It never returns to the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        do()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_process_loses_one_batch_while_another_reads(lm, journal, tmp_path, monkeypatch):
    """Killed at each batch in turn, with a reader that holds the files open all the time."""
    expected = work(lm, "sampled")

    def read_all() -> None:
        while True:
            for file in tmp_path.glob("*.sqlite"):
                with closing(sqlite3.connect(file, timeout=10)) as db:
                    db.execute("SELECT digest, content FROM batches").fetchall()

    def write(stop_at: int) -> None:
        with monkeypatch.context() as patch, using(journal):
            Passes(patch, stop_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            work(lm, "sampled")

    with using(journal):
        once("texts", {"the file": "exists"}, lambda: b"")
    reader = in_child(read_all)
    try:
        for _ in range(4):
            _, status = os.waitpid(in_child(lambda: write(1)), 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)
    with monkeypatch.context() as patch, using(journal):
        resumed = Passes(patch)
        assert work(lm, "sampled") == expected
    assert resumed.n == 1, "each of the four processes did one batch, and lost the one in which it was killed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_write_the_same_file(lm, journal, tmp_path):
    expected = in_bytes(work(lm, "sampled")) + in_bytes(work(lm, "activations"))

    def write() -> None:
        with using(journal):
            assert in_bytes(work(lm, "sampled")) + in_bytes(work(lm, "activations")) == expected

    children = [in_child(write) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    with closing(sqlite3.connect(tmp_path / "texts.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM batches").fetchone() == (N_BATCHES["sampled"],)


def test_the_first_of_two_writers_is_believed(journal, tmp_path):
    other = Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")

    def slower() -> bytes:
        other.write("texts", digests[0], b"first")
        return b"second"

    digests: list[str] = []
    real = journal.read
    journal.read = lambda kind, digest: digests.append(digest) or real(kind, digest)
    with using(journal):
        assert once("texts", {"a": 1}, slower) == b"first"


def test_what_a_batch_depends_on_makes_another_batch(lm, journal, monkeypatch):
    edits = [None, Offset(NEURONS, -1.0), Offset(NEURONS, -1.0000001), Offset(NEURONS.weighted([1, 1, 1, 2]), -1.0)]

    def write(edit, prompts=PROMPTS, **changed) -> int:
        with monkeypatch.context() as patch, using(journal):
            passes = Passes(patch)
            sizes = {"n_samples": 2, "max_new_tokens": 3, "batch_size": 40, "progress": False} | changed
            if edit is None:
                generate(lm, prompts, **sizes)
            else:
                with edit.on(lm):
                    generate(lm, prompts, **sizes)
        return passes.n

    assert [write(edit) for edit in edits] == [1] * 4
    assert [write(edit) for edit in edits] == [0] * 4, "and a hook that need not fire is no error"
    others = [{"seed": 1}, {"temperature": 0.8}, {"top_p": 0.7}, {"greedy": True}, {"n_samples": 3}]
    others += [{"max_new_tokens": 4}, {"prompts": {"fr": PROMPTS["en"]}}, {"prompts": {"en": PROMPTS["en"]}}]
    assert [write(None, **changed) for changed in others] == [1] * len(others)
    backwards = {"en": PROMPTS["en"][::-1]}
    assert write(None, backwards) == 1, "a batch is in an order"
    assert write(None, seed=1) == 0


def test_another_model_and_other_neurons_are_other_batches(lm, journal, tokenizer, monkeypatch):
    model = build("gpt2")
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 1.0
    other = HookedLM.load(model, tokenizer=tokenizer)
    with monkeypatch.context() as patch, using(journal):
        passes = Passes(patch)
        for one in (lm, other, lm, other):
            for neurons in (NEURONS, NEURONS.where([True, True, True, False])):
                collect_activations(one, PROMPTS, neurons, max_new_tokens=3, progress=False)
        assert passes.n == 4
        collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=3, stop_at_end=False, progress=False)
        assert passes.n == 5


def test_hooks_that_nobody_knows_see_every_pass(lm, journal):
    seen = []
    with using(journal):
        for edit in (None, "mine"):
            for _ in range(2):
                with lm.hooks(post={0: lambda value, edit=edit: seen.append(edit)}, edit=edit):
                    generate(lm, ["the cat"], n_samples=1, max_new_tokens=1, progress=False)
    assert seen == [None, None, "mine", "mine"]
    assert not list(journal._files["texts"].parent.glob("*.sqlite"))
    new = Offset(NEURONS, -1.0, positions="new")
    for _ in range(2):
        with using(journal), new.on(lm):
            generate(lm, ["the cat"], n_samples=1, max_new_tokens=3, progress=False)


def test_batches_are_those_of_the_first_run_whatever_memory_is_free(lm, journal, monkeypatch):
    for module in ("models.generation", "neurons.activations", "evaluation.text_losses", "models.batching"):
        monkeypatch.setattr(f"xlingtox.{module}.rows_that_fit", lambda *_: 4)

    def everything():
        written = generate(lm, PROMPTS, n_samples=2, max_new_tokens=3, progress=False)
        activations = collect_activations(lm, PROMPTS, NEURONS, max_new_tokens=3, progress=False)
        ending = ending_probability(lm, PROMPTS, progress=False)
        return [
            in_bytes(one) for one in (written, activations, ending, conditional_perplexity(lm, written, progress=False))
        ]

    with using(journal):
        expected = everything()
    for module in ("models.generation", "neurons.activations", "evaluation.text_losses", "models.batching"):
        monkeypatch.setattr(f"xlingtox.{module}.rows_that_fit", lambda *_: 7)
    with monkeypatch.context() as patch, using(journal):
        passes = Passes(patch)
        assert everything() == expected
        assert passes.n == 0


def test_texts_of_any_kind_are_kept_as_they_are(journal):
    text = "a\ud800\x00 \u2028é😀"

    dumped = json.dumps([text]).encode()
    with using(journal):
        assert json.loads(once("texts", {"text": text}, lambda: dumped)) == [text]
        assert json.loads(once("texts", {"text": text}, interrupt)) == [text]


def test_a_damaged_file_is_named_in_one_line(journal, tmp_path):
    file = tmp_path / "texts.sqlite"

    def refused(pattern: str) -> None:
        with using(journal), pytest.raises(ValueError, match=pattern) as caught:
            once("texts", {"a": 1}, lambda: b"x" * 9000)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        assert "delete it" in str(caught.value)

    file.write_bytes(b"no database at all" * 200)
    refused("is no file of batches: file is not a database")
    file.unlink()
    with using(journal):
        once("texts", {"a": 1}, lambda: b"x" * 9000)
    content = file.read_bytes()
    place = content.index(b"x" * 3000)
    file.write_bytes(content[:place] + b"y" + content[place + 1 :])
    refused("what it holds was changed")
    file.write_bytes(content[: len(content) // 2])
    refused("malformed")
    file.unlink()
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE something (else_ TEXT)")
    refused("a SQLite file of something else")


def test_a_full_disk_is_said_in_one_line_and_loses_nothing(journal, tmp_path, monkeypatch):
    with using(journal):
        once("numbers", {"a": 1}, lambda: b"kept")
    real = databases.connected

    def small(*arguments, **options):
        db = real(*arguments, **options)
        db.execute("PRAGMA max_page_count = 4")
        return db

    monkeypatch.setattr("xlingtox.models.journal.connected", small)
    file = tmp_path / "numbers.sqlite"
    with (
        using(journal),
        pytest.raises(OSError, match=rf"^cannot use the batches in {file}: .*full; free some") as caught,
    ):
        once("numbers", {"a": 2}, lambda: os.urandom(100_000))
    assert str(caught.value).startswith(f"cannot use the batches in {file}")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    with using(journal):
        assert once("numbers", {"a": 1}, interrupt) == b"kept"
        assert once("numbers", {"a": 2}, lambda: b"again") == b"again"


def test_numbers_are_forgotten_but_not_under_another_process(journal, tmp_path):
    with using(journal):
        for kind in ("texts", "numbers"):
            once(kind, {"a": 1}, lambda: b"one")
    with closing(sqlite3.connect(tmp_path / "numbers.sqlite")) as reader:
        reader.execute("SELECT * FROM batches").fetchall()
        journal.forget("numbers")
        assert (tmp_path / "numbers.sqlite").exists()
    journal.forget("numbers")
    assert [file.name for file in tmp_path.iterdir()] == ["texts.sqlite"]
    journal.forget("numbers")
    with using(journal):
        assert once("numbers", {"a": 1}, lambda: b"two") == b"two"
    (tmp_path / "numbers.sqlite").write_bytes(b"damaged" * 1000)
    journal.forget("numbers")
    assert [file.name for file in tmp_path.iterdir()] == ["texts.sqlite"]


def test_a_file_that_is_removed_meanwhile_is_made_anew(journal, tmp_path):
    with using(journal):
        once("texts", {"a": 1}, lambda: b"one")
        for file in tmp_path.iterdir():
            file.unlink()
        assert once("texts", {"a": 1}, lambda: b"two") == b"two"
        assert once("texts", {"a": 1}, interrupt) == b"two"


def test_a_batch_costs_little(journal):
    """A commit needs no flush: a hundred batches take far less than a hundred flushes do on most disks."""
    with using(journal):
        once("texts", {"a": -1}, lambda: b"")
        began = time.process_time()
        for i in range(100):
            once("texts", {"a": i}, lambda: b"x" * 2000)
    assert time.process_time() - began < 0.5
