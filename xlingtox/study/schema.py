"""The sections of a settings file, with their keys and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from xlingtox.study.mistakes import Mistakes, did_you_mean, toml

_MEANT = {"toxic_prompts": "prompts", "k": "candidates", "offsets": "doses", "name": "source"}
"""Keys that people know from the Python calls, and those of the file."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Model(_Section):
    """The section `[model]`: what `HookedLM.load` takes."""

    source: str = Field(examples=["ai-forever/mGPT"])
    revision: str | None = Field(None, examples=["main"])
    dtype: str | None = Field(None, examples=["bfloat16"])
    device: str | None = Field(None, examples=["cuda"])
    device_map: str | None = Field(None, examples=["auto"])
    bits: Literal[4, 8] | None = Field(None, examples=[4])
    adapter: str | None = Field(None, examples=["runs/adapter"])
    trust_remote_code: bool = Field(False, examples=[True])
    chat: bool = Field(False, examples=[True])
    system: str | None = Field(None, examples=["Answer in one sentence."])


_TABLE = Field(None, examples=[{"loader": "table", "path": "file.jsonl"}])


class Data(_Section):
    """The section `[data]`. Each table is checked by its loader's signature."""

    languages: list[str] | None = Field(None, examples=[["en", "es"]])
    per_language: int = Field(100, ge=1, examples=[100])
    seed: int = Field(0, ge=0, lt=2**32, examples=[0])
    prompts: dict[str, Any] = Field(examples=[{"loader": "rtp_lx", "path": "RTP-LX.zip"}])
    neutral_prompts: dict[str, Any] | None = _TABLE
    labelled: dict[str, Any] | None = Field(None, examples=[{"loader": "jigsaw", "path": "train.csv"}])
    labelled_elsewhere: dict[str, Any] | None = _TABLE
    pairs: dict[str, Any] | None = Field(None, examples=[{"loader": "toxicity_pairwise", "path": "pairs"}])
    validation: dict[str, Any] | None = _TABLE
    parallel: dict[str, Any] | None = Field(None, examples=[{"loader": "line_aligned", "path": "parallel"}])
    held_out: dict[str, Any] | None = _TABLE
    requests: dict[str, Any] | None = Field(None, examples=[{"loader": "xstest", "path": "xstest_prompts.csv"}])
    toxic_words: dict[str, Any] | None = Field(None, examples=[{"loader": "word_lists", "path": "words"}])
    word_groups: dict[str, Any] | None = Field(None, examples=[{"loader": "mini.word_groups"}])
    mixing: dict[str, Any] | None = Field(None, examples=[{"loader": "mini.mixing"}])
    identify_language: Literal["lingua", "mini"] | None = Field(None, examples=["lingua"])


class Study(_Section):
    """The section `[study]`: the fields of `Settings`. Their values are checked there."""

    stages: list[str] | None = Field(None, examples=[["localize", "intervene"]])
    source_language: str = Field("en", examples=["en"])
    candidates: int = Field(100, examples=[100])
    n_null: int = Field(199, examples=[199])
    unit: str = Field("sd", examples=["sd"])
    doses: list[float] | None = Field(None, examples=[[0, -1, -2]])
    amplifications: list[float] | None = Field(None, examples=[[0, 1, 2]])
    n_doses: int = Field(5, examples=[5])
    n_random: int = Field(3, examples=[3])
    n_random_amplified: int = Field(2, examples=[2])
    dose_prompts: int = Field(30, examples=[30])
    dose_samples: Any = 2
    attribution_prompts: int = Field(10, examples=[10])
    n_samples: int = Field(25, examples=[25])
    max_new_tokens: int = Field(20, examples=[20])
    seed: int = Field(0, examples=[0])


class LoraTable(_Section):
    """The table `lora` of `[tuning]`."""

    rank: int = Field(64, examples=[64])
    alpha: int = Field(16, examples=[16])
    dropout: float = Field(0.05, examples=[0.05])
    bits: Any = 4


class Engine(_Section):
    """The section `[engine]`: the fields of `Engine`. Without it, the models write on this machine."""

    url: str = Field(examples=["http://127.0.0.1:8000/v1"])
    model: str | None = Field(None, examples=["quiet"])
    tuned_url: str | None = Field(None, examples=["http://127.0.0.1:8001/v1"])
    tuned_model: str | None = Field(None, examples=["tuned"])
    key_env: str | None = Field(None, examples=["VLLM_API_KEY"])
    in_flight: int = Field(32, ge=1, examples=[32])


class Frontier(_Section):
    """The section `[frontier]`: the fields of `FrontierSettings`. Without it, methods are not compared."""

    methods: list[str] | None = Field(None, examples=[["AurA", "DPO"]])
    budgets: list[float] = Field([1.05, 1.1, 1.2], examples=[[1.05, 1.1, 1.2]])
    n_samples: int = Field(4, examples=[4])
    prompts: int = Field(20, examples=[20])
    texts: int = Field(60, examples=[60])
    sentences: int = Field(1000, examples=[1000])


class SideEffects(_Section):
    """The section `[side_effects]`: the fields of `SideEffectsSettings`. Without it, side effects are not measured."""

    tasks: Any = None
    n_shots: int | None = Field(None, examples=[0])
    limit: int | None = Field(None, examples=[200])
    neutral_prompts: bool = Field(True, examples=[False])
    held_out: bool = Field(True, examples=[False])
    n_samples: int = Field(5, examples=[5])


_NUMBERS = {
    **dict.fromkeys(("batch_size", "steps", "accumulation", "warm_up", "max_length", "max_prompt_length"), int),
    **dict.fromkeys(("evaluate_every", "patience", "save_every"), int),
    **dict.fromkeys(("learning_rate", "epochs", "beta", "label_smoothing", "max_grad_norm"), float),
    **dict.fromkeys(("sft_weight", "simpo_gamma", "desirable_weight", "undesirable_weight"), float),
    "validation_share": float,
    **dict.fromkeys(("end_token", "gradient_checkpointing"), bool),
    **dict.fromkeys(("loss_type", "optimizer"), str),
}
_EXAMPLES = {int: 100, float: 1e-5, bool: True, str: "sigmoid"}

Tuning: type[_Section] = pydantic.create_model(
    "Tuning",
    __base__=_Section,
    __doc__="The section `[tuning]`: a recipe, and any of its fields to override it.",
    recipe=(str | None, Field(None, examples=["paper-full"])),
    reverse=(bool, Field(False, examples=[True])),
    shuffle=(bool, Field(False, examples=[True])),
    lora=(LoraTable | None, Field(None, examples=[{"rank": 64}])),
    **{name: (kind | None, Field(None, examples=[_EXAMPLES[kind]])) for name, kind in _NUMBERS.items()},  # type: ignore[call-overload]
)
"""The section `[tuning]`."""

SECTIONS: Mapping[str, type[_Section]] = {
    "model": Model,
    "data": Data,
    "study": Study,
    "tuning": Tuning,
    "engine": Engine,
    "frontier": Frontier,
    "side_effects": SideEffects,
}
_MAY_BE_MISSING = ("engine", "frontier", "side_effects")
"""Sections that turn something on: without them there is nothing to fill in by default."""

TOP = ("output_dir", "model", "data", "judge", "second_judge", "study", "tuning", *_MAY_BE_MISSING)


def sections(content: Mapping[str, Any], mistakes: Mistakes) -> dict[str, dict[str, Any]]:
    """Return what each section gives, without what has a wrong type or an unknown key."""
    for key in content:
        if key not in TOP:
            homes = [section for section, kind in SECTIONS.items() if key in kind.model_fields]
            advice = f"it belongs in the section [{homes[0]}]" if homes else None
            if isinstance(content[key], dict) or not homes:
                advice = (
                    did_you_mean(key, TOP).replace("output_dir, ", "") if isinstance(content[key], dict) else advice
                )
            mistakes.unknown((key,), TOP, advice)
    if not isinstance(content.get("output_dir", ""), str):
        mistakes.value(("output_dir",), content["output_dir"], 'write a string, such as "runs/mgpt"')
    given: dict[str, dict[str, Any]] = {}
    for section, kind in SECTIONS.items():
        if section in _MAY_BE_MISSING and section not in content:
            continue
        written = content.get(section, {})
        if not isinstance(written, dict):
            mistakes.value((section,), written, f"write a section: [{section}] on a line, and its keys below")
        elif section in content or not any(field.is_required() for field in kind.model_fields.values()):
            given[section] = _typed(section, kind, written, mistakes)
        else:
            key = next(name for name, field in kind.model_fields.items() if field.is_required())
            unknown = [name for name in content if name not in TOP]
            mistakes.missing((section,), f"write a section [{section}] with {key} = ...", unknown)
    return given


def _typed(section: str, kind: type[_Section], written: dict[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """Return the keys of a section that have the right type."""
    try:
        kind.model_validate(written)
    except pydantic.ValidationError as error:
        wrong = set()
        for fault in error.errors(include_url=False):
            place = (section, *fault["loc"])
            wrong.add(fault["loc"][:2] if fault["loc"][0] == "lora" else fault["loc"][:1])
            inner = LoraTable if fault["loc"][0] == "lora" and len(fault["loc"]) > 1 else kind
            key = str(place[-1])
            field = kind.model_fields.get(str(fault["loc"][0]))
            if fault["type"] == "extra_forbidden":
                homes = [name for name, other in SECTIONS.items() if key in other.model_fields and name != section]
                advice = f"write {_MEANT[key]}" if key in _MEANT else None
                advice = advice or (f"it belongs in the section [{homes[0]}]" if homes else None)
                mistakes.unknown(place, inner.model_fields, advice)
            elif fault["type"] == "missing":
                example = (field.examples or ["..."])[0] if field is not None else "..."
                unknown = [_MEANT.get(name, name) for name in written if name not in kind.model_fields]
                mistakes.missing(place, f"write {key} = {toml(example)}", unknown)
            else:
                example = ""
                if inner is kind and field is not None and field.examples:
                    example = f", such as {fault['loc'][0]} = {toml(field.examples[0])}"
                mistakes.value(place, fault["input"], f"write {_expected(fault)}{example}")
        kept = {key: value for key, value in written.items() if (key,) not in wrong and key in kind.model_fields}
        if isinstance(kept.get("lora"), dict):
            kept["lora"] = {key: value for key, value in kept["lora"].items() if ("lora", key) not in wrong}
        return kept
    return dict(written)


def _expected(fault: Any) -> str:
    """Return what pydantic expected, in plain words."""
    kind, about = fault["type"], fault.get("ctx", {})
    words = {
        "string_type": "a string in quotes",
        "bool_type": "true or false",
        "float_type": "a number",
        "list_type": "a list",
        "dict_type": "a table in braces",
        "model_type": "a table in braces",
        "model_attributes_type": "a table in braces",
        "greater_than_equal": f"a whole number of at least {about.get('ge')}",
        "less_than": f"a whole number of less than {about.get('lt')}",
        "literal_error": f"one of {str(about.get('expected')).replace(' or ', ', ').replace(chr(39), chr(34))}",
    }
    return words.get(kind, "a whole number" if kind.startswith("int") else str(fault["msg"]).lower())
