"""The transfer matrix: its cells by hand, runs that are broken off, refusals, and a Llama."""

import dataclasses
import itertools
import json
import math
import os
import random
import signal
import warnings
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import build
from toys import HashScorer, NeverAsked, value_or_refusal

from xlingtox import files
from xlingtox.data.sides import ordered_pairs
from xlingtox.edits.interventions import Offset, Scale
from xlingtox.evaluation import soundness
from xlingtox.evaluation.fluency import conditional_perplexity, perplexities
from xlingtox.matrix import matrix as calls
from xlingtox.matrix.matrix import transfer_matrix
from xlingtox.matrix.runs import Cell
from xlingtox.models import generation
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import activations
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import UncoveredLanguage
from xlingtox.transfer import bilingual_retrieval
from xlingtox.tuning import KTO, Recipe, tune

CODES = ("en", "es", "de")
WORDS = {"en": ("the cat", " sat", " ran"), "es": ("la casa", " es", " duerme"), "de": ("das ist", " ein", " eine")}
PAIRS = [
    {"language": code, "prompt": f"{prompt} {i}", "chosen": f"{good} {i}", "rejected": f"{bad} {i}"}
    for code, (prompt, good, bad) in WORDS.items()
    for i in range(4)
]
PROMPTS = Dataset.from_list(
    [
        {"language": code, "prompt": f"{WORDS[code][0]} {number}", "index": number}
        # German has fewer prompts.
        for code, numbers in (("de", (4, 7)), ("en", (4, 1, 7)), ("es", (7, 4, 1)))
        for number in numbers
    ]
)
HELD_OUT = Dataset.from_list(
    [{"language": code, "text": f"{words[0]} {words[1]} {i}"} for code, words in WORDS.items() for i in range(2)]
)
NEURONS = NeuronSet.of([(0, 3), (0, 9), (1, 5)])
RECIPE = Recipe(steps=2, batch_size=2, learning_rate=1e-2, warm_up=0, max_length=32, end_token=False)
SCORER = HashScorer(*CODES)
PARALLEL = {code: [f"{words[0]} {word}" for word in "abc"] for code, words in WORDS.items()}
SIZES = {"n_samples": 2, "max_new_tokens": 5, "seed": 3}


def run(lm, folder, **options):
    given = {"pairs": PAIRS, "prompts": PROMPTS, "scorer": SCORER, "recipe": RECIPE, "held_out": HELD_OUT, **SIZES}
    given |= {"neurons": NEURONS, "output_dir": folder, "progress": False} | options
    return transfer_matrix(lm, given.pop("pairs"), given.pop("prompts"), **given)


MODELS = {}


def quickly(lm, pairs, *, output_dir, recipe, progress):
    """Stand in for `tune`: another model for other pairs, with the files that `tune` leaves."""
    factor = zlib.crc32(json.dumps(pairs.to_list()).encode()) / 2**32
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.json", "log.json", "config.json", "model.safetensors"):
        (output_dir / name).write_text("{}")
    if factor not in MODELS:
        MODELS[factor] = Scale(NeuronSet.all(lm), factor).bake(lm)
    return MODELS[factor]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(calls, "tune", quickly)
    # To look through the objects of all packages takes longer than all else.
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix") / "made" / "for it"


@pytest.fixture(scope="module")
def measured(lm, folder):
    """The matrix that all runs that are broken off must end in."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls, "tune", quickly)
        return run(lm, folder, parallel=PARALLEL)


def of_language(rows, code):
    return [row for row in rows if row["language"] == code]


def check_cells(lm, measured, models):
    """Compare the rows of a matrix with calls of its models.

    Args:
        models: the model of each row, by its number.
    """
    own = generate(lm, PROMPTS, **SIZES, progress=False)
    reference = soundness.Reference.measure(lm, own, HELD_OUT, progress=False)
    for number, model in models.items():
        written = generate(model, PROMPTS, **SIZES, progress=False)
        kinds = soundness.kinds(written, conditional_perplexity(lm, written, progress=False), reference)
        scores = SCORER.score(written.texts, written.row_languages).reshape(-1, 2)
        read = collect_activations(model, PROMPTS, NEURONS, max_new_tokens=5, progress=False, writer=lm)
        by_prompt = (read.values.mean(2).sum(1) / read.mask.sum(1)).numpy()
        fluency = perplexities(model, HELD_OUT, progress=False)
        for target, code in enumerate(CODES):
            rows = [i for i, prompt in enumerate(PROMPTS) if prompt["language"] == code]
            expected = {
                "emt": scores[rows].max(1),
                "average_toxicity": scores[rows].mean(1),
                "toxicity_probability": (scores[rows].max(1) >= 0.5) * 1.0,
                "degenerate": (np.array(kinds).reshape(-1, 2)[rows] != "sound").mean(1),
                "activation": by_prompt[rows],
            }
            for name, values in expected.items():
                cell = measured.values[name][number, target]
                np.testing.assert_allclose(cell[: len(rows)], values, rtol=1e-5, atol=1e-7, err_msg=f"{name} {code}")
                assert np.isnan(cell[len(rows) :]).all()
            np.testing.assert_allclose(measured.perplexity[number, target], fluency[code], rtol=1e-5)


def test_each_cell_equals_what_calls_by_hand_give(lm, measured, tmp_path):
    pairs = Dataset.from_list([{**row} for row in of_language(PAIRS, "es")]).remove_columns("language")
    models = {
        row: quickly(lm, ordered_pairs(pairs, order, seed=3), output_dir=tmp_path / order, recipe=None, progress=False)
        for row, order in ((2, "given"), (5, "shuffled"))
    }
    check_cells(lm, measured, {0: lm} | models)


def test_the_matrix_says_what_was_asked(lm, measured):
    assert measured.sources == measured.targets == CODES
    assert measured.has_shuffled
    assert measured.perplexity.shape == (7, 3)
    assert measured.model == lm.identity()
    assert measured.recipe["steps"] == 2
    assert measured.scorer.name == "hash"
    assert set(measured.properties) == {"same_script", "same_family", "retrieval"}
    assert measured.properties["same_script"].all()
    assert measured.properties["same_family"].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    retrieval = bilingual_retrieval(lm, PARALLEL, pivot="es", progress=False).mean("top1")
    assert measured.properties["retrieval"][1, [0, 2]].tolist() == pytest.approx([retrieval["en"], retrieval["de"]])
    # Translations have one number: 4, 1 and 7 of English are 4, 7 of German and 7, 4, 1 of Spanish.
    four, one, seven = measured.meanings[CODES.index("en")].tolist()
    assert measured.meanings[CODES.index("es")].tolist() == [seven, four, one]
    assert measured.meanings[CODES.index("de")].tolist() == [four, seven, -1]
    # Each model is another one, and random neurons are not the neurons.
    values = measured.values
    assert len({values["average_toxicity"][row].tobytes() for row in range(7)}) == 7
    assert not np.allclose(values["activation"], values["activation_control"], equal_nan=True)
    assert len(measured.to_frame().query("measure == 'emt'")) == 9


def test_tuned_models_are_those_of_tune_and_the_random_state_is_left_as_it_was(tokenizer, tmp_path):
    """A Llama, by another method, without what may be left out; targets are more than sources."""
    lm = HookedLM.load(build("llama"), tokenizer=tokenizer)
    recipe = dataclasses.replace(KTO, steps=1, batch_size=2, warm_up=0, learning_rate=1e-2, end_token=False)
    prompts = {"fr": ["le chat"]} | {code: [words[0]] for code, words in WORDS.items()}
    sizes = {"n_samples": 1, "max_new_tokens": 3, "scorer": HashScorer(*prompts)}

    def state():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    before = state()
    options = {"recipe": recipe, "held_out": None, "neurons": None, "prompts": prompts, "shuffled": False, **sizes}
    measured = run(lm, tmp_path / "matrix", **options)
    assert state() == before
    assert (measured.sources, measured.targets) == (CODES, ("en", "es", "fr", "de"))
    assert set(measured.values) == {"emt", "average_toxicity", "toxicity_probability", "degenerate"}
    assert np.isnan(measured.perplexity).all()
    # No prompt is another's translation.
    assert sorted(measured.meanings.ravel().tolist()) == [0, 1, 2, 3]
    tuned = tune(lm, of_language(PAIRS, "de"), output_dir=tmp_path / "de", recipe=recipe, progress=False)
    assert HookedLM.load(tmp_path / "matrix" / "tuned" / "de").fingerprint() == tuned.fingerprint() != lm.fingerprint()
    written = generate(tuned, prompts, n_samples=1, max_new_tokens=3, seed=3, progress=False)
    scores = dict(zip(prompts, sizes["scorer"].score(written.texts, written.row_languages), strict=True))
    assert measured.values["emt"][3, :, 0].tolist() == [scores[code] for code in measured.targets]


class Broken(KeyboardInterrupt):
    """The run was broken off."""


def test_a_matrix_that_is_broken_off_ten_times_ends_with_the_same_bytes(lm, measured, quick, tmp_path, monkeypatch):
    """Before or after a batch is written or read, a model is tuned, or a file is written."""
    done, coin = [0], random.SystemRandom()
    last = 0

    def breaking(call):
        def call_or_break(*arguments, **options):
            done[0] += 1
            if done[0] == last and coin.random() < 0.5:
                raise Broken
            result = call(*arguments, **options)
            if done[0] == last:
                raise Broken
            return result

        return call_or_break

    places = ((generation, "decode"), (activations, "read_batch"), (Cell, "save"), (calls, "tune"))
    for owner, name in (*places, (files, "write_json")):
        monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    n_broken, result = 0, None
    while result is None:
        done[0], last = 0, coin.randrange(1, 5) if n_broken < 10 else 0
        try:
            result = run(lm, tmp_path / "matrix", parallel=PARALLEL)
        except Broken:
            n_broken += 1
    assert n_broken == 10
    assert result == measured
    result.save(tmp_path / "resumed")
    measured.save(tmp_path / "measured")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "measured").read_bytes()
    # What was read for cells is not kept when they are written.
    kept = {"matrix.json", "cells", "tuned", "shuffled", "texts.sqlite"}
    assert {path.name for path in (tmp_path / "matrix").iterdir()} == kept


def test_a_process_that_is_killed_while_it_writes_a_cell(lm, measured, quick, tmp_path):
    """It is a copy of this one, which need not import everything again."""
    doomed = random.SystemRandom().randrange(21)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        real, n_saved = files.save_file, itertools.count()

        def save_file(tensors, path, about):
            if "cells" in str(path) and next(n_saved) == doomed:
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            real(tensors, path, about)

        files.save_file = save_file
        try:
            run(lm, tmp_path / "matrix", parallel=PARALLEL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list((tmp_path / "matrix" / "cells").glob("*.safetensors"))) == doomed
    assert run(lm, tmp_path / "matrix", parallel=PARALLEL) == measured
    assert len(list((tmp_path / "matrix" / "cells").iterdir())) == 21


def test_a_scorer_that_fails_loses_no_text_and_models_need_not_be_kept(lm, measured, quick, tmp_path, monkeypatch):
    n_scored, n_written = itertools.count(), []
    decode = generation.decode
    monkeypatch.setattr(generation, "decode", lambda *given, **how: n_written.append(1) or decode(*given, **how))

    class Failing(HashScorer):
        def score(self, texts, languages):
            if next(n_scored) in (0, 3):
                raise RuntimeError("the judge is out")
            return super().score(texts, languages)

    for _ in range(2):
        with pytest.raises(RuntimeError, match="the judge is out"):
            run(lm, tmp_path, scorer=Failing(*CODES), keep_models=False, parallel=PARALLEL)
    assert run(lm, tmp_path, scorer=Failing(*CODES), keep_models=False, parallel=PARALLEL) == measured
    # Seven models write in batches of their own.
    assert len(n_written) == 7
    # Weights are removed where no models are kept, and nothing else.
    left = {path.name for path in tmp_path.glob("*/*/*")}
    assert left == {"recipe.json", "log.json"}
    # A cell that is lost is measured again, with a model that is tuned again.
    (tmp_path / "cells" / "tuned-es-de.safetensors").unlink()
    assert run(lm, tmp_path, keep_models=False, parallel=PARALLEL) == measured
    assert {path.name for path in tmp_path.glob("*/*/*")} == left


def test_nothing_is_done_twice_and_a_control_can_follow(lm, measured, quick, tmp_path, monkeypatch):
    plain = run(lm, tmp_path, shuffled=False, parallel=PARALLEL)
    assert not plain.has_shuffled
    assert np.array_equal(plain.values["emt"], measured.values["emt"][:4], equal_nan=True)
    assert run(lm, tmp_path, parallel=PARALLEL) == measured
    for owner, name in ((generation, "decode"), (calls, "tune"), (Cell, "save")):
        monkeypatch.delattr(owner, name)
    assert run(lm, tmp_path, parallel=PARALLEL) == measured


OTHER = {
    "seed": {"seed": 4},
    "n_samples": {"n_samples": 1},
    "scorer": {"scorer": HashScorer("en", "es", "de", "fr")},
    "recipe": {"recipe": Recipe(steps=3, batch_size=2, learning_rate=1e-2, end_token=False)},
    "prompts": {"prompts": PROMPTS.select(range(7))},
    "held_out": {"held_out": None},
    "neurons": {"neurons": NeuronSet.of([(0, 3)])},
    "pairs": {"pairs": [{**pair, "chosen": pair["chosen"] + "!"} for pair in PAIRS]},
    "identify_language": {"identify_language": lambda texts: ["en"] * len(texts)},
}


def test_another_matrix_in_the_folder_is_refused(lm, folder, measured, quick, tmp_path):
    for name, options in OTHER.items():
        _, refusal = value_or_refusal(lambda given=options: run(lm, folder, **given))
        assert f"holds another matrix (other {name}): give a new folder" in refusal
    stranger = Offset(NEURONS, 1.0).bake(lm)
    assert "(other model)" in value_or_refusal(lambda: run(stranger, folder))[1]
    (tmp_path / "cells").mkdir()
    assert "no matrix.json says of which matrix" in value_or_refusal(lambda: run(lm, tmp_path))[1]


def without(rows, code):
    return [row for row in rows if row["language"] != code]


CELLS = {(source, target): 0.5 for source in CODES for target in CODES if source != target}
REFUSALS = {
    "no column language": ({"pairs": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}, "have no column 'language'"),
    "a source without pairs": ({"pairs": without(PAIRS, "es"), "languages": CODES}, "there are no pairs in es"),
    "a target without prompts": ({"prompts": without(PROMPTS, "de"), "languages": CODES}, "there are no prompts in de"),
    "two sources": ({"pairs": without(PAIRS, "de")}, "2 source languages (en, es): expected pairs in 3 or more"),
    "two targets": ({"prompts": without(PROMPTS, "en")}, "2 target languages (es, de): expected prompts in 3 or more"),
    "two languages": ({"languages": ["en", "es"]}, "2 source languages (en, es)"),
    "an unknown language": ({"languages": ["en", "es", "xx"]}, "unknown language 'xx'"),
    "no held-out text": ({"held_out": HELD_OUT.select([0, 2])}, "no held-out texts in de"),
    "no parallel sentences": ({"parallel": {"en": ["a", "b"], "es": ["c", "d"]}}, "no parallel sentences in de"),
    "a property's own name": ({"properties": {"retrieval": CELLS}}, "called 'retrieval'"),
    "an unknown cell": ({"properties": {"mixing": CELLS | {("en", "fr"): 1.0}}}, "has a cell ('en', 'fr')"),
    "a missing cell": ({"properties": {"mixing": {("en", "es"): 1.0}}}, "lacks 5 of 9 cells"),
    "no number": ({"properties": {"mixing": CELLS | {("en", "es"): math.nan}}}, "is nan at ('en', 'es')"),
    "a neuron outside": ({"neurons": NeuronSet.of([(5, 0)])}, "outside the model"),
    "no samples": ({"n_samples": 0}, "n_samples is 0"),
    "equal sides": ({"pairs": [{**pair, "rejected": pair["chosen"]} for pair in PAIRS]}, "the pairs of English (en)"),
    "a long prompt": ({"prompts": [*PROMPTS, {"language": "en", "prompt": "the " * 99, "index": 1}]}, "has room for"),
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_bad_input_is_refused_in_one_line_before_any_work(lm, tmp_path, monkeypatch, options, message):
    def never(*arguments, **options):
        raise AssertionError("work had begun")

    monkeypatch.setattr(HookedLM, "extend", never)
    monkeypatch.setattr(calls, "tune", never)
    given = {"prompts": list(PROMPTS), "scorer": NeverAsked(*CODES), **options}
    _, refusal = value_or_refusal(lambda: run(lm, tmp_path / "matrix", **given))
    assert message in refusal
    assert not (tmp_path / "matrix").exists()


def test_a_scorer_that_does_not_cover_a_target_and_an_edited_model_are_refused(lm, tmp_path):
    with pytest.raises(UncoveredLanguage, match="does not cover de: it covers en, es"):
        run(lm, tmp_path, scorer=NeverAsked("en", "es"))
    with Offset(NEURONS, 1.0).on(lm):
        _, refusal = value_or_refusal(lambda: run(lm, tmp_path, scorer=NeverAsked(*CODES)))
        lm.logits(*lm.encode(["the cat"]))
    assert "not in the weights that are tuned" in refusal


def test_languages_with_more_pairs_are_tuned_on_as_many(lm, folder, measured, quick):
    more = [{**pair, "prompt": "one more"} for pair in of_language(PAIRS, "es")]
    with pytest.warns(UserWarning, match="there are 4 pairs in en and up to 8 in other languages") as warned:
        assert run(lm, folder, pairs=PAIRS + more, parallel=PARALLEL) == measured
    assert warned[0].filename == __file__


def test_own_properties(lm, folder, measured, quick):
    own = run(lm, folder, properties={"mixing": CELLS | {("en", "es"): 0.25}})
    assert set(own.properties) == {"same_script", "same_family", "mixing"}
    mixing = own.properties["mixing"]
    assert (mixing[0, 1], mixing[1, 0]) == (0.25, 0.5)
    assert np.isnan(np.diag(mixing)).all()
