"""Every public function, constructor and method of the package, for the tests that call or inspect them all."""

import inspect
from collections.abc import Iterator
from typing import Any

import xlingtox as xt
from xlingtox.edits import constants
from xlingtox.evaluation import cautions, degenerate, fluency, intervals, medians, metrics, multiplicity, soundness
from xlingtox.neurons import controls
from xlingtox.study import (
    check,
    comparing,
    power,
    published,
    recipes,
    report,
    study_check,
    templates,
    terminal,
    weights,
)
from xlingtox.transfer import correlation, prediction, retrieval

MODULES = {
    "localize": xt.localize,
    "controls": controls,
    "neurons": xt.neurons,
    "constants": constants,
    "transfer": xt.transfer,
    "retrieval": retrieval,
    "prediction": prediction,
    "correlation": correlation,
    "metrics": metrics,
    "fluency": fluency,
    "degenerate": degenerate,
    "soundness": soundness,
    "cautions": cautions,
    "scoring": xt.scoring,
    "data": xt.data,
    "figures": xt.figures,
    "mini": xt.mini,
    "matrix": xt.matrix,
    "methods": xt.methods,
    "tuning": xt.tuning,
    "evaluation": xt.evaluation,
    "paper": xt.paper,
    "study": xt.study,
    "report": report,
    "terminal": terminal,
    "comparing": comparing,
    "templates": templates,
    "check": check,
    "study_check": study_check,
    "weights": weights,
    "power": power,
    "recipes": recipes,
    "languages": xt.languages,
    "published": published,
    "intervals": intervals,
    "medians": medians,
    "multiplicity": multiplicity,
}

INNER = {
    # Called within every forward pass, with values that our own code has made.
    *("HookedLM.__init__", "HookedLM.extend", "HookedLM.repeated", "HookedLM.selected", "HookedLM.run_alongside"),
    *("HookedLM.check_alike", "HookedLM.over", "HookedLM.device_of", "HookedLM.row_bytes", "HookedLM.only_tokens"),
    *(
        "HookedLM.altered",
        "HookedLM.check_unedited",
        "HookedLM.unbridged",
        "HookedLM.names_of",
        "tuning.Pairs.tokenized",
    ),
    *(
        f"{kind}.{method}"
        for kind in ("Offset", "Patch", "Project", "Scale", "Set", "Steer")
        for method in ("check", "acts", "by_place", "change", "reader", "editor", "apply")
    ),
    *(
        f"{kind}.{method}"
        for kind in ("Offset", "Project", "Scale", "Set", "Steer")
        for method in ("packed", "unpacked")
    ),
    *(
        f"evaluation.{measure}.{method}"
        for measure in ("LogProbability", "PreferenceMargin", "ProbeLogit", "RowMeasure", "ToxicMass")
        for method in ("check", "rows", "values")
    ),
    # Parts of checked calls.
    *("Probe.fitted", "neurons.Probe.fitted"),
    *(
        "localize.check_k",
        "correlation.fisher",
        "correlation.pearson_p",
        "tuning.check_recipe",
        "prediction.check_enough",
        "prediction.shared",
    ),
    *("fluency.fluency_of", "fluency.prompts_and_texts", "soundness.reference_of"),
    *("HookedLM.n_thought", "data.Chat.check", "data.Chat.pair", "data.Chat.switches"),
    *("HookedLM.knowing", "HookedLM.unembedded", "fluency.held_out_texts", "fluency.judged_rows"),
    *("cautions.places", "fluency.check_held_out", "data.check_columns", "data.row_numbers", "tuning.Recipe.arguments"),
    # Protocols: others write them.
    *("scoring.Scorer.__init__", "scoring.Scorer.score", "scoring.StreamingScorer.__init__"),
    "paper.Study.__init__",
    *("scoring.StreamingScorer.score", "scoring.StreamingScorer.stream", "cautions.DoseNumbers.__init__"),
}


def public() -> Iterator[tuple[str, Any]]:
    """Yield every public function, constructor and method with its name."""
    named = {name: getattr(xt, name) for name in xt.__all__ if not inspect.ismodule(getattr(xt, name))}
    for folder, module in MODULES.items():
        here = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in here if not name.startswith("_")]):
            if not inspect.ismodule(getattr(module, name)):
                named[f"{folder}.{name}"] = getattr(module, name)
    for name, value in named.items():
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            for owner in reversed(value.__mro__):
                for attribute, method in vars(owner).items() if owner.__module__.startswith("xlingtox") else ():
                    call = getattr(method, "__func__", method)
                    if inspect.isfunction(call) and (attribute == "__init__" or not attribute.startswith("_")):
                        yield f"{name}.{attribute}", call


def arguments(call: Any) -> list[str]:
    return [name for name in inspect.signature(call).parameters if name not in ("self", "cls")]


PUBLIC = {name: call for name, call in public() if arguments(call)}
GUARDED = {name: call for name, call in PUBLIC.items() if name not in INNER}
