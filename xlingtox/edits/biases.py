"""Biases: give the projections of a model biases that its weights lack, where its family or a Llama has them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers

from xlingtox.edits.affine import NoPlace

_SETTINGS = ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "bias")
"""The settings with which some families give biases to all projections, or to those of attention or of the MLP."""

_LLAMA_LIKE = ("llama", "mistral", "qwen2")
"""Families that are Llama with other settings. They can be written as a Llama with biases on its projections."""


def with_biases(model: Any, needed: Mapping[str, str]) -> tuple[Any, str]:
    """Return the model with more biases, of zero, and how it is written then: by these settings, or as which class.

    It keeps its own class where that has such biases, and becomes a Llama where it is one with other settings.

    Args:
        needed: the names of the projections that need biases, each with the projection in words.

    Raises:
        NoPlace: neither is possible; the message says why.
    """
    if not needed:
        return model, "as it was"
    weights, config, make = model.state_dict(), model.config, type(model)._from_config
    settings, lacking = _settings(make, config, needed)
    layout = ", ".join(settings)
    if lacking:
        make, config = _as_llama(model, f"{needed[lacking[0]]} has no bias")
        settings, lacking = _settings(make, config, needed)
        if any(key.endswith("self_attn.q_proj.bias") for key in weights):
            settings = sorted({*settings, "attention_bias"})
        layout = transformers.LlamaForCausalLM.__name__
    if lacking:
        raise NoPlace(f"{needed[lacking[0]]} has no bias, and no Llama has one there")
    # The new model is made in the old one's precision. A cast would round the rotary frequencies too.
    biased = make(_with(config, settings), dtype=model.dtype).to(model.device)
    missing, unexpected = biased.load_state_dict(weights, strict=False)
    unmatched = [key for key in missing if not key.endswith(".bias")] + list(unexpected)
    if unmatched:
        raise NoPlace(f"with biases it would lack {unmatched[0]}")
    parameters = dict(biased.named_parameters())
    with torch.no_grad():
        for key in missing:
            parameters[key].zero_()
    biased.generation_config = model.generation_config
    return biased.eval(), layout


def possible_biases(model: Any) -> frozenset[str]:
    """Return the names of the modules that one of the settings gives a bias, where the model keeps its class."""
    names = set[str]()
    for biased in _biased(type(model)._from_config, model.config).values():
        names |= {name for name, module in biased.named_modules() if _has_bias(module)}
    return frozenset(names)


def _has_bias(module: Any) -> bool:
    return getattr(module, "bias", None) is not None


def _biased(make: Any, config: Any) -> dict[str, Any]:
    """Return the model with each setting that is off switched on: only its modules, without weights."""
    off = [setting for setting in _SETTINGS if getattr(config.get_text_config(), setting, None) is False]
    with torch.device("meta"):
        return {setting: make(_with(config, [setting])) for setting in off}


def _settings(make: Any, config: Any, needed: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the settings that give biases to the modules, and the names of those that none of them gives one."""
    chosen, lacking = [], list(needed)
    for setting, biased in _biased(make, config).items():
        left = [name for name in lacking if not _has_bias(biased.get_submodule(name))]
        chosen += [setting] if len(left) < len(lacking) else []
        lacking = left
    return chosen, lacking


def _with(config: Any, settings: Iterable[str]) -> Any:
    """Return a copy of a configuration in which these settings are on."""
    changed = copy.deepcopy(config)
    for setting in settings:
        setattr(changed.get_text_config(), setting, True)
    return changed


def _as_llama(model: Any, why: str) -> tuple[Any, Any]:
    """Return the function that makes a Llama, and the configuration of one that is like the model.

    Args:
        why: the reason why the model's own family will not do.

    Raises:
        NoPlace: the family is not a Llama with other settings, or its attention has a window, which no Llama has.
    """
    config = model.config
    family = config.model_type
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if family not in _LLAMA_LIKE:
        raise NoPlace(f"{why}, and {family} has no place for one")
    if window is not None and window < config.max_position_embeddings:
        raise NoPlace(f"{why}, and its attention has a sliding window, which no Llama has")
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("model_type", "architectures", "transformers_version", "mlp_bias", "attention_bias")
        and not key.startswith("_")
    }
    make: Any = transformers.LlamaForCausalLM._from_config
    return make, transformers.LlamaConfig(**settings)
