"""A result of each kind that is kept in a file, made of one number, so that a mixture of two is seen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlingtox import files
from xlingtox.data import Prompt
from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.alignment_split import AlignmentSplit
from xlingtox.evaluation.attribution import Attribution
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import Dose, DoseResponse
from xlingtox.evaluation.fluency import Fluency
from xlingtox.evaluation.measurement import Measures
from xlingtox.evaluation.metrics import Change
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.same_text import ActivationChange, SetActivity, SpecificChange
from xlingtox.evaluation.soundness import Reference
from xlingtox.evaluation.stability import EditEffect, Overlap, Stability
from xlingtox.evaluation.weight_drift import WeightDrift
from xlingtox.figures.tokens import TokenView
from xlingtox.measures import RETRIEVAL
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.areas import Auc
from xlingtox.neurons.evidence import Evidence
from xlingtox.neurons.judging import Chance, Ranking, Separation, Words
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.neurons.token_activations import TokenActivations
from xlingtox.paper import Beside, Counterpart
from xlingtox.scoring import ScorerIdentity
from xlingtox.transfer.correlation import Correlation
from xlingtox.transfer.results import Predictor, Transfer
from xlingtox.transfer.retrieval import Retrieval
from xlingtox.verdicts import Verdict

KINDS: dict[str, Any] = {
    "probe": Probe,
    "neurons": NeuronSet,
    "activations": Activations,
    "tokens": TokenActivations,
    "continuations": Continuations,
    "comparison": Comparison,
    "transfer": Transfer,
    "retrieval": Retrieval,
    "patching": PatchEffect,
    "split": AlignmentSplit,
    "attribution": Attribution,
    "doses": DoseResponse,
    "drift": WeightDrift,
    "fluency": Fluency,
    "vectors": ControlVectors,
    "beside": Beside,
    "evidence": Evidence,
    "stability": Stability,
    "reference": Reference,
}
"""Name of a file to the class that it is loaded by, given its path alone."""


def made(value: float, n: int = 40) -> dict[str, Any]:
    """Name to a result of its kind, in which every number is `value`; the larger n is, the larger are the files."""
    codes = ("en", "es", "de", "fr")
    model = Identity(f"model {value}", None, "float32", "f")
    neurons = NeuronSet.of([(0, i) for i in range(n)], scores=[value] * n)
    table = dict.fromkeys(codes, value)
    measures = {code: Measures(*[value] * len(dataclasses.fields(Measures))) for code in codes}
    correlation = Correlation(*[value] * (len(dataclasses.fields(Correlation)) - 1), exact=False)
    chance, verdicts = Chance(*[value] * 3), (Verdict(f"claim {value}", "weak", f"{value}"),)
    prompts = tuple(Prompt("en", f"{value} {i}") for i in range(n))
    return {
        "probe": Probe(torch.full((50 * n,), value), value, value, value, value, int(value), int(value), model),
        "neurons": neurons,
        "tokens": TokenActivations("en", (f"{value}",) * 5, 1, torch.full((5, n), value), neurons, model),
        "activations": Activations(
            neurons,
            torch.full((1, n), value, dtype=torch.float64),
            torch.full((1,), int(value)),
            torch.ones(2, 5, dtype=torch.bool),
            ("en", "en"),
            torch.full((2, 5, n), value),
            model,
        ),
        "continuations": Continuations(prompts, 1, tuple(f"{value}" for _ in prompts), {"seed": value}),
        "comparison": Comparison(
            measures,
            measures,
            {code: {"emt": (value, value)} for code in codes},
            scorer=ScorerIdentity(f"scorer {value}", "1", codes),
            models=(model, model),
            mean_changes={"emt": Change(*[value] * 4)},
            neurons=neurons.neurons,
            neuron_activations=dict.fromkeys(codes, ((value,) * n, (value,) * n)),
            activity=SetActivity(
                changes={code: {"sources": ActivationChange(*[value] * 4)} for code in codes},
                specific=dict.fromkeys(codes, SpecificChange(*[value] * 3)),
                silent={"en": ("sources",)},
            ),
        ),
        "transfer": Transfer(
            "emt",
            table,
            table,
            value,
            value,
            {},
            {},
            {"retrieval": Predictor(table, 4, correlation, correlation, *[value] * 3)},
        ),
        "retrieval": Retrieval(
            "en", {"es": np.full((len(RETRIEVAL), 5, n), value)}, {"es": (int(value),) * 5}, {"es": int(value)}, model
        ),
        "patching": PatchEffect(codes, {"base": {"emt": np.full(n, value)}}),
        "split": AlignmentSplit(
            codes,
            {"TP": neurons},
            {"tuned into base": {"patch": {"whole": np.full(n, value), "TP": np.full(n, value)}}},
            (model, model),
        ),
        "attribution": Attribution(
            "log_probability",
            codes,
            {"neurons": np.array([(0, i) for i in range(n)])},
            *[{"neurons": np.full((len(codes), n), value)}] * 2,
            {name: np.full(len(codes), value) for name in ("base", "exact", "patched", "linear", "integrated")},
            {f"set {value}": {"linear": np.full(len(codes), value), "integrated": np.full(len(codes), value)}},
            int(value),
            (model, model),
        ),
        "doses": DoseResponse(
            tuple(Dose(value, value, table, degenerate=value, perplexity=value, low=value, high=value) for _ in "abc"),
            scorer=ScorerIdentity(f"scorer {value}", "1", codes),
            model=model,
            n_neurons=int(value),
            others={"more": (Dose(value, value, table, degenerate=value, perplexity=value, low=value, high=value),)},
            unit="sd",
            match="push",
        ),
        "drift": WeightDrift(("key", "value"), *[np.full((3, 2, n), value)] * 2, (model, model)),
        "fluency": Fluency(
            f"judge {value}", np.full(n, value), table, {code: {"texts": int(value)} for code in codes}, model=model
        ),
        "vectors": ControlVectors({layer: torch.full((20 * n,), value) for layer in range(1, 4)}),
        "beside": Beside((Counterpart("Table 2", "emt", "mean", f"{value}", "", (value,) * 2, ((value,) * 2,)),) * n),
        "evidence": Evidence(
            dataclasses.replace(neurons, evidence=verdicts),
            Probe(torch.full((50 * n,), value), value, model=model),
            {"en": Separation(Auc(*[value] * 3, int(value), int(value)), chance)},
            Ranking(value, value, chance, chance, value),
            {"all": Words(int(value), int(value), value, value, int(value), chance, chance, (value,) * 3)},
            ("ja",),
            verdicts,
            int(value),
        ),
        "stability": Stability(
            (Overlap("first", "second", int(value), value, value),) * n,
            (EditEffect("first", int(value), int(value), value, Change(*[value] * 4), value),) * n,
            *(value, value, value, "sd"),
            scorer=ScorerIdentity(f"scorer {value}", "1", codes),
            model=model,
        ),
        "reference": Reference(
            model, dict.fromkeys(codes, int(value)), table, {code: {"texts": int(value)} for code in codes}
        ),
        "view": TokenView(f"<p>{value}</p>" * n, 100),
    }


def save_all(lm: HookedLM, value: float, folder: Path, n: int = 40) -> None:
    """Write a file of each kind."""
    folder.mkdir(exist_ok=True)
    results = made(value, n)
    for name, result in results.items():
        result.save(folder / name)
    Offset(NeuronSet.of([(0, i) for i in range(20)], scores=[value] * 20), value).save(folder / "edit", lm)
    results["vectors"].save_gguf(folder / "vectors.gguf", "llama")
    files.write_results(folder / "results.json", {"values": [value] * 5 * n})
    files.write_text(folder / "report.html", f"{value}\n" * 12 * n)


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path to content, of all files that are not hidden, and in no hidden folder."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not f"/{name}".count("/.")}
