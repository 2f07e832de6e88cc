"""The words of an error about an argument: the value that was given, what was expected, and a call that gives one."""

from __future__ import annotations

import reprlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from xlingtox.checking.hints import is_array, is_row, parts

_WORDS: Mapping[Any, str] = {
    # A key is the name of a class or of an alias, or a hint. The words name what is expected, and how to get it.
    "Activations": "Activations (xt.collect_activations(lm, prompts, neurons))",
    "Chosen": "a Chosen (response.chosen() of a DoseResponse)",
    "Comparison": "a Comparison (xt.compare(before, after, ...))",
    "AlignmentSplit": "an AlignmentSplit (xt.alignment_split(base, tuned, prompts, probe))",
    "Continuations": "Continuations (xt.generate(lm, prompts))",
    "DataFrame": "a pandas DataFrame",
    "Dataset": "a Dataset (xt.data and xt.mini give them; datasets.Dataset.from_list(rows))",
    "DoseResponse": "a DoseResponse (xt.dose_response(lm, neurons, doses, prompts, ...))",
    "Dose": "a Dose (response.doses of a DoseResponse has them)",
    "HalfDose": "a HalfDose (dose.halves of a Dose has them)",
    "LanguageDose": "a LanguageDose (dose.by_language of a Dose has them)",
    "DoseNumbers": "a Dose (response.doses of a DoseResponse has them)",
    "Beside": "a Beside (xt.paper.beside(results))",
    "Counterpart": "a Counterpart (beside.rows of a Beside has them)",
    "Engine": 'an Engine (xt.study.Engine(url="http://127.0.0.1:8000/v1"))',
    "Fluency": "a Fluency (xt.evaluation.conditional_perplexity(judge, continuations))",
    "Frame": "a data frame",
    "Groups": (
        "a dict from a string to a NeuronSet, or to a list of them (xt.NeuronSet.of([(layer, index)]), or "
        'xt.NeuronSet.of([(layer, head)], site="heads"))'
    ),
    "HookedLM": 'a HookedLM (xt.HookedLM.load("mini"), or of a model in memory load(model, tokenizer=...))',
    "Identity": "an Identity (lm.identity())",
    "Intervention": "an edit (xt.Offset(neurons, -1.0))",
    "Labelled": "a table with the columns text, label (a Dataset, a data frame, a list of dicts)",
    "LayerDrift": "a LayerDrift (xt.weight_drift(before, after).by_layer() gives them)",
    "Lora": "a Lora (xt.tuning.Lora(rank=64))",
    "Mask": "a mask of True and False, one for each neuron (activations.mean() > 0, not activations.mean())",
    "MeanActivations": "Activations (xt.collect_activations(lm, prompts, neurons))",
    "Materials": "materials (xt.study.Materials(...))",
    "Measures": "Measures (comparison.before of a Comparison has them)",
    "NeuronSet": "a NeuronSet (xt.NeuronSet.of([(layer, index)]), or xt.localize.by_cosine(lm, probe))",
    "PatchEffect": "a PatchEffect (xt.patch_effect(...))",
    "Path": "a path",
    "PreTrainedModel": "a Hugging Face model",
    "PreTrainedTokenizerBase": "a tokenizer of transformers",
    "Probe": "a Probe (xt.Probe.fit(lm, labelled))",
    "PreferencePairs": "a table with the columns prompt, chosen, rejected (a Dataset, a data frame, a list of dicts)",
    "Prompt": "a Prompt(language, text)",
    "Prompts": (
        "a list of strings, a dict from language to a list of strings, or a table with the columns language, prompt (a "
        "Dataset, a data frame, a list of dicts); a conversation may take the place of a string"
    ),
    "Recipe": "a recipe (xt.tuning.MINI, varied with dataclasses.replace)",
    "Results": (
        "StudyResults (xt.study.run(...)), a Comparison (xt.compare(before, after, ...)), a list of either, one a "
        "seed, or a dict from the name of a model to any of these"
    ),
    "Reference": "a Reference (xt.evaluation.Reference.measure(lm, continuations, held_out))",
    "Retrieval": "a Retrieval (xt.transfer.bilingual_retrieval(lm, parallel))",
    "Scorer": "a scorer with name, revision, languages and score() (xt.mini.scorer())",
    "ScorerIdentity": "a ScorerIdentity (ScorerIdentity.of(scorer))",
    "Series": "a pandas Series",
    "Served": 'a server (xt.Served("http://127.0.0.1:8000/v1"))',
    "SettingsFile": "a settings file (xt.Study.from_toml(path) reads it)",
    "Settings": "settings (xt.study.Settings(n_samples=10))",
    "Study": "StudyResults (xt.study.run(...), or xt.StudyResults.load(path))",
    "StudyResults": "StudyResults (xt.study.run(...), or xt.StudyResults.load(path))",
    "Tensor": "a tensor",
    "TokenActivations": "TokenActivations (xt.read_tokens gives a list of them)",
    "Transfer": "a Transfer (xt.predict_transfer(...))",
    "device": "a torch.device",
    "dtype": "a dtype (torch.float32)",
    "ndarray": "an array",
    "WeightDrift": "a WeightDrift (xt.weight_drift(before, after))",
    Mapping[str, Sequence[str]]: "a dict from language to a list of strings",
    Mapping[str, Sequence[str] | Mapping[str, float]]: (
        "a dict from language to a list of strings, or to a dict from string to severity"
    ),
    Callable[
        [Sequence[str]], Sequence[str | None]
    ]: "a function from texts to their languages (xt.mini.identify_language)",
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a string",
    type(None): "None",
    Any: "anything",
    object: "anything",
}

_PLURALS = {bool: "True and False", float: "numbers", int: "whole numbers", str: "strings"}


def shown(value: Any) -> str:
    """Return a value for a message, in one short line, with its type.

    Example:
        >>> from xlingtox.checking import shown
        >>> shown("mini"), shown(["a", "b", "c", "d"])
        ("'mini' (a str)", "['a', 'b', 'c', ...] (a list)")
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return f"{kind} of {str(value.dtype).removeprefix('torch.')} with shape {list(value.shape)}"
    if isinstance(value, str | bytes | bool | int | float | list | tuple | dict | set | frozenset):
        short = _SHORT.repr(value)
        return f"{short if len(short) <= 80 else short[:77] + '...'} ({type_of(value)})"
    return type_of(value)


def type_of(value: Any) -> str:
    """Return the name of a value's type, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


class _Short(reprlib.Repr):
    """Shortens a value to one line: its first items, and only the types of those that could be long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxlevel = 40, 2
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 3

    def repr_instance(self, value: Any, level: int) -> str:
        return repr(value) if isinstance(value, bool | float | None) else f"<{type(value).__name__}>"

    def repr_str(self, value: str, level: int) -> str:
        return " ".join(super().repr_str(value, level).split())


_SHORT = _Short()


def expected(hint: Any, written: object) -> str:
    """Return an annotation in words.

    Args:
        hint: the annotation as an object.
        written: the annotation as the source writes it. Some names, such as `Prompts`, have words in the table above.

    Example:
        >>> from collections.abc import Sequence
        >>> from xlingtox.checking.messages import expected
        >>> expected(Sequence[str] | None, "Sequence[str] | None"), expected(float, "float")
        ('a list of strings or None', 'a number')
    """
    alias = written.removesuffix(" | None") if isinstance(written, str) else ""
    if alias in _WORDS:
        return _WORDS[alias] + (" or None" if alias != written else "")
    return _described(hint)


def _described(hint: Any) -> str:
    """Return a hint in words; the members of a union are joined by "or"."""
    members = [part for part in parts(hint) if part is not type(None)]
    words = list(dict.fromkeys(_word(member) for member in members))
    if len(members) < len(parts(hint)):
        words.append("None")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(hint: Any) -> str:
    """Return a hint that is no union in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if is_array(hint):
        kind = {"Float": "floats", "Int": "whole numbers", "Bool": "True and False"}[hint.__name__.split("[")[0]]
        return f"{_WORDS[hint.array_type.__name__]} of {kind}, [{hint.dim_str}]"
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}" if len(inner) > 1 else repr(inner[0])
    if is_row(hint):
        plural = _PLURALS.get(inner[0])
        return f"a list, every item {_described(inner[0])}" if plural is None else f"a list of {plural}"
    if origin is tuple:
        return f"({', '.join(_described(part) for part in inner)})"
    if origin in (Mapping, dict):
        return f"a dict from {_described(inner[0])} to {_described(inner[1])}"
    if origin is Callable:
        return "a function"
    name = getattr(hint, "__name__", str(hint))
    return _WORDS.get(name, f"a {name}")
