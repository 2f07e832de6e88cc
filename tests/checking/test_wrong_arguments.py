"""Wrong calls, as people make them, are refused in one line before work starts."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from datasets import Dataset
from public_calls import MODULES
from toys import HashScorer, NeverAsked

import xlingtox as xt

TEXTS = {"en": ["the cat sat", "the dog ran"], "es": ["la casa es", "el gato duerme"]}
LABELLED = Dataset.from_dict({"text": [f"the cat {i}" for i in range(8)], "label": [0, 1] * 4})
PAIRS = Dataset.from_list([{"prompt": "the", "chosen": " cat", "rejected": " dog"}] * 4)
HELD_OUT = Dataset.from_dict({"language": ["en"], "text": ["the cat sat on the mat"]})
NEURONS = xt.NeuronSet.of([(0, 3), (1, 5)])
SCORER = NeverAsked("en", "es")
MATRIX = np.array([[0.1, 0.9], [0.4, 0.2]])


@pytest.fixture(scope="module")
def good(lm) -> dict[str, Any]:
    """A right value for every argument that a wrong call leaves as it is."""
    identity = lm.identity()
    probe = xt.Probe(torch.ones(lm.d_model), 0.0, 0.9, 0.9, 0.5, 8, 2, identity)
    activations = xt.collect_activations(lm, TEXTS, NEURONS, max_new_tokens=2, progress=False)
    continuations = xt.generate(lm, TEXTS, n_samples=1, max_new_tokens=2, progress=False)
    return {
        **dict.fromkeys(("lm", "before", "after", "judge"), lm),
        "probe": probe,
        "activations": activations,
        "neurons": NEURONS,
        "control": NEURONS,
        "match": "layers",
        "prompts": TEXTS,
        "scorer": SCORER,
        "labelled": LABELLED,
        "pairs": PAIRS,
        "held_out": HELD_OUT,
        "parallel": TEXTS,
        "path": "x",
        "source": "x",
        "continuations": continuations,
        "fluency": xt.evaluation.conditional_perplexity(lm, continuations, progress=False),
        "output_dir": "runs",
        "offsets": [0.0, -1.0],
        "doses": [0.0, -1.0],
        "groups": {"some": NEURONS},
        "scorers": [SCORER, SCORER],
        "texts": ["a", "b"],
        "codes": ["en", "en"],
        "languages": ["en", "en"],
        "observed": {"es": 0.5, "fr": 0.2, "de": 0.1},
        "retrieval": {"es": 0.5},
        "words": {"en": ["fool"]},
        "scores": MATRIX,
        "x": [1.0, 2.0],
        "y": [1.0, 2.0],
        "samples": [[[1, 2]]],
        "n": 1,
        "reference": None,
        "unedited": None,
        "drops": {"es": 0.5},
        "measure": "emt",
        "experts": NEURONS,
        "mask": [True, False],
        "value": 1.0,
        "seed": 0,
        "effect": None,
        "columns": {"text": "a"},
        "table": LABELLED,
        "read": [],
        "language": "en",
        "rows": [[1]],
        "batch_size": 1,
        "learning_rate": 0.1,
        "steps": 1,
        "potential": NEURONS,
        "actual": NEURONS,
        "layer": 0,
        "input_ids": torch.ones(1, 2, dtype=torch.int64),
        "attention_mask": torch.ones(1, 2, dtype=torch.bool),
    }


CALLS: dict[str, Callable[..., Any]] = {
    **{name: getattr(xt, name) for name in xt.__all__ if inspect.isfunction(getattr(xt, name))},
    **{name: getattr(xt, name) for name in ("NeuronSet", "Offset", "Scale", "Set", "Patch", "Probe", "Continuations")},
    "Activations": xt.Activations,
    "Activations.load": xt.Activations.load,
    "Cached": xt.scoring.Cached,
    "Continuations.load": xt.Continuations.load,
    "ControlVectors": xt.ControlVectors,
    "HookedLM.load": xt.HookedLM.load,
    "Lora": xt.tuning.Lora,
    "NeuronSet.all": xt.NeuronSet.all,
    "NeuronSet.of": xt.NeuronSet.of,
    "NeuronSet.random_like": NEURONS.random_like,
    "NeuronSet.promoted_tokens": NEURONS.promoted_tokens,
    "NeuronSet.vectors": NEURONS.vectors,
    "NeuronSet.weighted": NEURONS.weighted,
    "NeuronSet.where": NEURONS.where,
    "Intervention.bake": xt.Offset(NEURONS, 1.0).bake,
    "Intervention.on": xt.Offset(NEURONS, 1.0).on,
    "Intervention.save": xt.Offset(NEURONS, 1.0).save,
    "PerspectiveScorer": xt.scoring.PerspectiveScorer,
    "PerspectiveReplay": xt.scoring.PerspectiveReplay,
    "Probe.fit": xt.Probe.fit,
    "Probe.load": xt.Probe.load,
    "ProbeScorer": xt.scoring.ProbeScorer,
    "Recipe": xt.tuning.Recipe,
    "Reference.measure": xt.evaluation.Reference.measure,
    "Scale.damping": xt.Scale.damping,
    "Settings": xt.study.Settings,
    "WordlistScorer": xt.scoring.WordlistScorer,
    "WordlistScorer.score": xt.mini.scorer().score,
    **{
        f"{folder}.{name}": call
        for folder, module in MODULES.items()
        for name, call in vars(module).items()
        if inspect.isfunction(call) and not name.startswith("_")
    },
}

F32, I64 = torch.zeros(2), torch.zeros(2, dtype=torch.int64)

WRONG: list[tuple[str, str, Any, str]] = [
    # A model.
    ("collect_activations", "lm", "mini", 'a HookedLM (xt.HookedLM.load("mini")'),
    ("collect_activations", "lm", None, "a HookedLM"),
    ("generate", "lm", 3, "a HookedLM"),
    ("generate", "lm", tiny, "a HookedLM"),
    ("compare", "before", "mini", "a HookedLM"),
    ("compare", "after", Path("runs"), "a HookedLM"),
    ("patch_effect", "before", {"model": 1}, "a HookedLM"),
    ("alignment_split", "base", {"model": 1}, "a HookedLM"),
    ("read_tokens", "lm", True, "a HookedLM"),
    ("dose_response", "lm", xt.HookedLM, "a HookedLM"),
    ("weight_drift", "before", 0.5, "a HookedLM"),
    ("tune_dpo", "lm", None, "a HookedLM"),
    ("tune_dpo", "lm", 7, "a string or a path"),
    ("localize.by_cosine", "lm", "mini", "a HookedLM"),
    ("localize.by_auroc", "lm", [], "a HookedLM"),
    ("retrieval.bilingual_retrieval", "lm", "aya", "a HookedLM"),
    ("fluency.perplexities", "lm", None, "a HookedLM"),
    ("fluency.conditional_perplexity", "judge", "mini", "a HookedLM"),
    ("generate_under", "lm", "mini", "a HookedLM"),
    ("prediction.tokens_per_character", "lm", "mini", "a HookedLM"),
    ("NeuronSet.all", "lm", "mini", "a HookedLM"),
    ("NeuronSet.vectors", "lm", None, "a HookedLM"),
    ("Intervention.on", "lm", "mini", "a HookedLM"),
    ("Intervention.bake", "lm", 1, "a HookedLM"),
    ("Probe.fit", "lm", "mini", "a HookedLM"),
    ("ProbeScorer", "lm", "mini", "a HookedLM"),
    ("study.run", "lm", "mini", "a HookedLM"),
    ("HookedLM.load", "source", 3, "'mini', a checkpoint folder, a hub name"),
    ("HookedLM.load", "source", {"a": 1}, "'mini', a checkpoint folder"),
    ("HookedLM.load", "tokenizer", "gpt2", "a tokenizer of transformers"),
    ("HookedLM.load", "dtype", "float16", "a dtype (torch.float32)"),
    ("HookedLM.load", "bits", "4", "one of 4, 8"),
    ("HookedLM.load", "trust_remote_code", "yes", "True or False"),
    # A scorer.
    ("compare", "scorer", None, "a scorer with name, revision, languages and score() (xt.mini.scorer())"),
    ("compare", "scorer", "perspective", "a scorer"),
    ("compare", "scorer", HashScorer, "a scorer"),
    ("dose_response", "scorer", {"en": ["fool"]}, "a scorer"),
    ("patch_effect", "scorer", 0.5, "a scorer"),
    ("Cached", "scorer", len, "a scorer"),
    ("scoring.check_scores", "scorer", None, "a scorer"),
    ("scoring.agreement", "scorers", [SCORER, None], "scorers[1] is None, expected a list, every item a scorer"),
    # Neurons.
    ("collect_activations", "neurons", [(0, 3)], "a NeuronSet (xt.NeuronSet.of([(layer, index)])"),
    ("collect_activations", "neurons", None, "a NeuronSet"),
    ("compare", "neurons", 3, "a NeuronSet"),
    ("read_tokens", "neurons", {"0": 3}, "a NeuronSet"),
    ("Offset", "neurons", [(0, 1)], "a NeuronSet"),
    ("Scale", "neurons", "all", "a NeuronSet"),
    ("Patch", "neurons", None, "a NeuronSet"),
    ("Scale.damping", "experts", 0.7, "a NeuronSet"),
    ("dose_response", "neurons", [NEURONS], "a NeuronSet"),
    ("dose_response", "neurons", {"sources": [(0, 1)]}, "a dict from a string to a NeuronSet"),
    ("dose_response", "unit", 1.0, "one of 'sd', 'activation'"),
    ("dose_response", "match", None, "one of 'layers', 'activity', 'push'"),
    ("evaluation.propose_doses", "direction", "down", "one of -1, 1"),
    ("evaluation.propose_doses", "n", "6", "a whole number"),
    ("patch_effect", "groups", NEURONS, "a dict from a string to a NeuronSet"),
    ("patch_effect", "groups", {"some": [(0, 1)]}, "groups['some'][0] is (0, 1) (a tuple), expected a dict"),
    ("NeuronSet.of", "neurons", 3, "a list"),
    ("NeuronSet.of", "neurons", [(0.7, 1.9)], "neurons[0][0] is 0.7 (a float), expected"),
    ("NeuronSet.of", "neurons", [(0, 1), (1.0, 2)], "neurons"),
    ("NeuronSet.of", "neurons", [(True, 1)], "neurons"),
    ("NeuronSet.of", "neurons", torch.ones(2, 2), "a list"),
    ("NeuronSet.of", "scores", "ab", "a list of numbers or None"),
    ("NeuronSet.of", "scores", {0: 1.0, 1: 2.0}, "a list of numbers or None"),
    ("NeuronSet", "neurons", ((0, 1.5), (1, 5)), "neurons"),
    ("figures.sources", "candidates", [(0, 1)], "a NeuronSet"),
    # Masks.
    ("NeuronSet.where", "mask", F32, "activations.mean() > 0, not activations.mean()"),
    ("NeuronSet.where", "mask", I64, "one for each neuron"),
    ("NeuronSet.where", "mask", np.array([0.1, -0.2]), "one for each neuron"),
    ("NeuronSet.where", "mask", [0.1, -0.2], "one for each neuron"),
    ("NeuronSet.where", "mask", [1, 0], "one for each neuron"),
    ("NeuronSet.where", "mask", torch.ones(2, 2, dtype=torch.bool), "one for each neuron"),
    ("NeuronSet.where", "mask", True, "one for each neuron"),
    ("NeuronSet.where", "mask", None, "one for each neuron"),
    # Values of edits.
    ("Offset", "value", {0: 0.0, 1: 0.0}, "a number or a list of numbers"),
    ("Scale", "value", {0.0, 1.0}, "a number or a list of numbers"),
    ("Set", "value", "1.0", "a number or a list of numbers"),
    ("Offset", "value", [0.0, None], "value[1] is None, expected"),
    ("Offset", "value", True, "a number or a list of numbers"),
    ("Offset", "positions", 3, "one of 'all', 'prompt', 'new'"),
    ("Patch", "source", "mini", "a HookedLM"),
    ("Patch", "source", {0: torch.ones(2, 3)}, "source[0] is a tensor of float32 with shape [2, 3], expected"),
    ("Patch", "source", {"0": torch.ones(2, 3, 4)}, "expected a HookedLM"),
    # Prompts and other texts.
    ("generate", "prompts", "the cat", "a list of strings"),
    ("generate", "prompts", None, "a list of strings, a dict from language to a list of strings"),
    ("collect_activations", "prompts", 40, "a list of strings"),
    ("collect_activations", "prompts", {"en": "the cat"}, "prompts['en'] is 'the cat' (a str), expected"),
    ("generate", "prompts", ["the cat", None], "prompts[1] is None, expected"),
    ("generate", "prompts", [1, 2], "prompts[0] is 1 (an int), expected"),
    ("data.as_prompts", "prompts", b"the cat", "a list of strings"),
    ("compare", "prompts", True, "a list of strings"),
    ("retrieval.bilingual_retrieval", "parallel", "abc", "a dict from language to a list of strings"),
    (
        "retrieval.bilingual_retrieval",
        "parallel",
        {"en": "abc", "es": "def"},
        "parallel['en'] is 'abc' (a str), expected",
    ),
    ("retrieval.embed", "sentences", "cat", "a list of strings"),
    ("degenerate.kinds", "texts", "one text", "a list of strings"),
    ("degenerate.kinds", "languages", "en", "a list of strings"),
    ("degenerate.shares", "texts", None, "a list of strings"),
    ("WordlistScorer.score", "texts", "one text", "a list of strings"),
    ("WordlistScorer.score", "languages", "en", "a list of strings"),
    ("WordlistScorer", "words", ["fool"], "a dict from language to a list of strings"),
    ("WordlistScorer", "words", {"en": "fool"}, "words['en'] is 'fool' (a str), expected"),
    # A probe, pairs, labelled sentences, held-out texts.
    ("localize.by_cosine", "probe", torch.ones(32), "a Probe (xt.Probe.fit(lm, labelled))"),
    ("localize.by_contribution", "probe", None, "a Probe"),
    ("localize.by_contribution", "activations", F32, "Activations (xt.collect_activations(lm, prompts, neurons))"),
    ("patch_effect", "probe", NEURONS, "a Probe"),
    ("ProbeScorer", "probe", "probe.safetensors", "a Probe"),
    ("Probe.fit", "labelled", "train.csv", "a Dataset"),
    ("Probe.fit", "labelled", None, "a Dataset"),
    ("localize.by_auroc", "labelled", 5, "a Dataset"),
    ("tune_dpo", "pairs", "pairs.jsonl", "a Dataset"),
    ("tune_dpo", "pairs", None, "a Dataset"),
    ("tuning.tunable_pairs", "pairs", 3, "a Dataset"),
    ("tune_dpo", "validation", "some", "a Dataset"),
    ("compare", "held_out", "text", "a Dataset"),
    ("fluency.perplexities", "held_out", None, "a Dataset"),
    ("fluency.conditional_perplexity", "continuations", ["a"], "Continuations (xt.generate(lm, prompts))"),
    ("study.run", "materials", {"labelled": 1}, "materials (xt.study.Materials(...))"),
    ("compare", "identify_language", "lingua", "a function from texts to their languages (xt.mini.identify_language)"),
    ("degenerate.kinds", "identify_language", 3, "a function"),
    ("soundness.kinds", "fluency", 9.5, "a Fluency (xt.evaluation.conditional_perplexity(judge, continuations))"),
    (
        "soundness.kinds",
        "reference",
        None,
        "a Reference (xt.evaluation.Reference.measure(lm, continuations, held_out))",
    ),
    ("Reference.measure", "continuations", ["a"], "Continuations"),
    ("Reference.measure", "held_out", "text", "a Dataset"),
    ("fluency.text_perplexities", "held_out", None, "a Dataset"),
    ("cautions.of_drops", "drops", [0.5], "a dict from a string to a number"),
    ("cautions.of_doses", "doses", 3.0, "a list"),
    ("cautions.of_comparison", "before", {"en": 0.5}, "Measures (comparison.before of a Comparison has them)"),
    # Recipes, paths, names.
    ("tune_dpo", "recipe", "MINI", "a recipe (xt.tuning.MINI, varied with dataclasses.replace)"),
    ("tune_dpo", "recipe", {"steps": 3}, "a recipe"),
    ("tune_dpo", "output_dir", None, "a string or a path"),
    ("tune_dpo", "output_dir", 3, "a string or a path"),
    ("Probe.load", "path", None, "a string or a path"),
    ("Activations.load", "path", 3.5, "a string or a path"),
    ("Continuations.load", "path", ["x.json"], "a string or a path"),
    ("Intervention.save", "path", None, "a string or a path"),
    ("data.rtp_lx", "source", None, "a string or a path"),
    ("data.rtp_lx", "password", 1234, "a string or None"),
    ("data.jigsaw", "source", 3, "a string or a path"),
    ("data.word_lists", "source", {"en": "x"}, "a string or a path"),
    ("data.from_columns", "columns", ["text"], "a dict from a string to a string"),
    ("data.subsample", "n", 2.0, "a whole number"),
    ("PerspectiveScorer", "api_key", 1234, "a string or None"),
    ("PerspectiveReplay", "source", 3, "a string, a path or a list"),
    # Counts, seeds and other numbers.
    ("generate", "n_samples", 2.0, "a whole number"),
    ("generate", "n_samples", "2", "a whole number"),
    ("generate", "n_samples", None, "a whole number"),
    ("generate", "n_samples", True, "a whole number"),
    ("generate", "max_new_tokens", 2.5, "a whole number"),
    ("generate", "seed", 1.5, "a whole number"),
    ("generate", "seed", None, "a whole number"),
    ("generate", "seed", True, "a whole number"),
    ("generate", "seed", np.float64(1), "a whole number"),
    ("generate", "temperature", "hot", "a number"),
    ("generate", "temperature", True, "a number"),
    ("generate", "greedy", "yes", "True or False"),
    ("generate", "batch_size", "8", "a whole number or None"),
    ("collect_activations", "progress", None, "True or False"),
    ("localize.by_cosine", "k", 10.0, "a whole number"),
    ("localize.by_cosine", "k", "all", "a whole number"),
    ("NeuronSet.random_like", "seed", None, "a whole number"),
    ("NeuronSet.random_like", "match", 3, "one of 'layers', 'activity', 'push'"),
    ("NeuronSet.random_like", "activations", F32, "Activations (xt.collect_activations(lm, prompts, neurons)) or None"),
    ("NeuronSet.weighted", "amounts", 0.5, "a list of numbers"),
    ("NeuronSet.weighted", "amounts", [0.5, None], "amounts[1] is None, expected"),
    ("collect_activations", "writer", "mini", "a HookedLM"),
    ("controls.random_sets", "neurons", [(0, 3)], "a NeuronSet"),
    ("controls.random_sets", "n", 2.0, "a whole number"),
    ("controls.activity_by_layer", "control", None, "a NeuronSet"),
    ("NeuronSet.promoted_tokens", "k", "ten", "a whole number"),
    ("retrieval.bilingual_retrieval", "n_neighbours", 2.5, "a whole number"),
    ("retrieval.bilingual_retrieval", "batch_size", [8], "a whole number"),
    ("dose_response", "doses", -1.0, "a list of numbers"),
    ("dose_response", "doses", ["-1"], "doses[0] is '-1' (a str), expected a list of numbers"),
    ("patch_effect", "toxic_tokens", "cat", "a list of whole numbers or None"),
    ("Recipe", "steps", 2.0, "a whole number or None"),
    ("Recipe", "steps", True, "a whole number"),
    ("Recipe", "batch_size", None, "a whole number"),
    ("Recipe", "learning_rate", "1e-4", "a number"),
    ("Recipe", "lora", {"rank": 4}, "a Lora"),
    ("Recipe", "validation_share", None, "a number"),
    ("Recipe", "loss_type", ["sigmoid"], "one of 'sigmoid', 'hinge'"),
    ("Lora", "dropout", None, "a number"),
    ("Recipe", "lora", 64, "a Lora (xt.tuning.Lora(rank=64))"),
    ("Recipe", "loss_type", None, "one of 'sigmoid', 'hinge'"),
    ("Lora", "rank", 64.0, "a whole number"),
    ("Settings", "n_samples", 2.5, "a whole number"),
    ("Settings", "n_samples", True, "a whole number"),
    ("Settings", "offsets", -1.0, "a list of numbers"),
    ("Settings", "recipe", "MINI", "a recipe"),
    ("mini.prompts", "n", 2.0, "a whole number"),
    ("mini.prompts", "n", "2", "a whole number"),
    ("mini.prompts", "kind", None, "one of 'toxic', 'neutral'"),
    ("mini.labelled", "language", None, "a string"),
    ("mini.pairs", "split", 3, "one of 'train', 'tune', 'validation', 'test'"),
    ("mini.parallel", "languages", 17, "a string or a list of strings"),
    ("mini.held_out", "seed", "0", "a whole number"),
    ("mini.identify_language", "texts", "one text", "a list of strings"),
    # Arrays and tensors.
    ("metrics.expected_maximum_toxicity", "scores", "0.5", "an array of floats, [prompt sample]"),
    ("metrics.average_toxicity", "scores", None, "an array of floats"),
    ("metrics.average_toxicity", "scores", np.zeros((2, 2, 2)), "an array of float64 with shape [2, 2, 2], expected"),
    ("metrics.average_toxicity", "scores", np.array(["a"]), "an array of floats"),
    ("metrics.toxicity_probability", "threshold", "half", "a number"),
    ("intervals.paired_interval", "before", MATRIX, "an array of floats, [prompt]"),
    ("intervals.paired_changes", "before", MATRIX, "a dict from a string to an array of floats, [prompt]"),
    ("metrics.distinct_n", "samples", "abc", "a list"),
    ("correlation.pearson", "x", "abc", "a list of numbers"),
    ("prediction.relate", "observed", [0.5], "a Comparison (xt.compare(before, after, ...)) or a dict"),
    ("prediction.relate", "retrieval", 0.5, "a dict from a string to a number"),
    (
        "Probe",
        "direction",
        torch.ones(2, 2),
        "a tensor of float32 with shape [2, 2], expected a tensor of floats, [",
    ),
    ("Probe", "direction", torch.ones(2, dtype=torch.int64), "a tensor of floats"),
    ("Probe", "direction", np.ones(2), "a tensor of floats"),
    ("ControlVectors", "vectors", {0: torch.ones(2, 2)}, "vectors[0] is a tensor"),
    # Figures and reports.
    ("figures.activation_map", "before", F32, "Activations"),
    ("figures.dose_response", "response", [0.1], "a DoseResponse (xt.dose_response(lm, neurons, doses, prompts, ...))"),
    ("figures.transfer", "transfer", 0.5, "a Transfer"),
    ("figures.toxicity", "comparison", {"en": 0.5}, "a Comparison"),
    ("figures.patch_effect", "effect", None, "a PatchEffect"),
    ("figures.promoted", "table", [1], "a pandas DataFrame"),
    ("figures.roc", "labels", [0, "1"], "labels[1] is '1' (a str), expected a list of whole numbers"),
    ("top_tokens", "read", NEURONS, "a list, every item TokenActivations"),
    ("report.render", "results", "results.json", "StudyResults (xt.study.run(...)"),
    ("languages.check", "languages", None, "a string or a list of strings"),
]


@pytest.mark.parametrize(
    ("name", "argument", "value", "words"),
    WRONG,
    # Without addresses, every process gives a test the same name.
    ids=lambda value: str(value).split(" at 0x")[0][:24],
)
def test_a_wrong_type_gets_one_clear_line(good, name, argument, value, words):
    call = CALLS[name]
    arguments = {}
    for parameter in inspect.signature(call).parameters.values():
        if parameter.default is inspect.Parameter.empty and parameter.name != argument:
            arguments[parameter.name] = good.get(parameter.name)
    with pytest.raises(TypeError) as caught:
        call(**arguments, **{argument: value})
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(name.split(".")[-1] if name.islower() else name)
    assert f": {argument}" in line
    assert words in line
    assert caught.value.__cause__ is None


def test_there_are_many_of_them():
    assert len(WRONG) >= 110
    assert len({(name, argument) for name, argument, _, _ in WRONG}) >= 90


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: xt.mini.prompts(n=2, kind="evil"),
            "prompts: kind is 'evil' (a str), expected one of 'toxic', 'neutral'",
        ),
        (
            lambda: xt.mini.prompts(n=2, split="x"),
            "prompts: split is 'x' (a str), expected one of 'train', 'tune', 'val",
        ),
        (lambda: xt.mini.labelled(split="x"), "split is 'x'"),
        (lambda: xt.mini.pairs(split="x"), "split is 'x'"),
        (lambda: xt.mini.parallel(n=2, split="x"), "split is 'x'"),
        (lambda: xt.mini.held_out(n=2, split="x"), "split is 'x'"),
        (lambda: xt.mini.prompts(n=0), "n is 0: expected at least 1"),
        (lambda: xt.mini.labelled(n=-1), "n is -1"),
        (lambda: xt.mini.pairs(n=0), "n is 0"),
        (lambda: xt.mini.parallel(n=0), "n is 0"),
        (lambda: xt.mini.held_out(n=0), "n is 0"),
        (lambda: xt.mini.prompts(n=2, languages=["xx"]), "unknown language 'xx': expected one of ar, cs"),
        (lambda: xt.mini.prompts(n=2, languages=[]), "languages is []: expected some of en, es"),
        (lambda: xt.mini.parallel(n=2, languages=[]), "languages is []"),
        (lambda: xt.mini.held_out(n=2, languages=["am"]), "unknown language 'am'"),
        (lambda: xt.mini.labelled("xx"), "unknown language 'xx'"),
        (lambda: xt.mini.pairs("xx"), "unknown language 'xx'"),
        (lambda: xt.study.Settings(n_samples=0), "n_samples is 0: expected at least 1"),
        (lambda: xt.study.Settings(k=0), "k is 0"),
        (lambda: xt.study.Settings(seed=-1), "seed is -1"),
        (lambda: xt.study.Settings(seed=2**32), "seed is 4294967296"),
        (lambda: xt.study.Settings(offsets=()), "at least one dose"),
        (lambda: xt.study.Settings(offsets=(0.0, 0.0)), "offsets is (0.0, 0.0): expected each offset once"),
        (lambda: xt.study.Settings(amplifications=(0.0, -0.0)), "amplifications is (0.0, -0.0): expected each"),
        (lambda: xt.study.Settings(amplifications=(0.0, float("nan"))), "dose nan"),
        (lambda: xt.Offset(NEURONS, 1.0, positions="last"), "one of 'all', 'prompt', 'new'"),
        (lambda: xt.tuning.Lora(bits=3), "bits is 3 (an int), expected one of 4, 8 or None"),
        (lambda: NEURONS.where([True]), "a mask of 1 for 2 neurons"),
        (lambda: xt.NeuronSet.of([(0, 1, 2)]), "a neuron is (layer, index)"),
    ],
)
def test_a_wrong_value_is_a_value_error(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_are_not_shown():
    for call, argument in [(xt.scoring.PerspectiveScorer, "api_key"), (xt.data.rtp_lx, "password")]:
        with pytest.raises(TypeError) as caught:
            call(**{"source": "x"} if argument == "password" else {}, **{argument: b"hush"})
        assert f"{argument} is a bytes, expected a string" in str(caught.value)


def test_what_is_shown_is_short():
    with pytest.raises(TypeError) as caught:
        xt.generate(3, "x")
    model = 'a HookedLM (xt.HookedLM.load("mini"), or of a model in memory load(model, tokenizer=...))'
    server = 'a server (xt.Served("http://127.0.0.1:8000/v1"))'
    assert str(caught.value) == f"generate: lm is 3 (an int), expected {model} or {server}"
    for value in ("line\nbreak " * 500, [["deep" * 100] * 50] * 50, dict.fromkeys(range(100), "x" * 100), object()):
        with pytest.raises(TypeError) as caught:
            xt.Offset(value, 1.0)
        assert len(str(caught.value)) < 320
        assert "\n" not in str(caught.value)
