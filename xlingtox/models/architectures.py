"""Decoders of text: the check of a configuration, and the class of transformers that reads it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


def check_architecture(config: Any, otherwise: str = "") -> None:
    """Raise ValueError unless a configuration names a decoder with a language-model head.

    Args:
        otherwise: the name of the model's class, for a configuration that names none.
    """
    names = list(getattr(config, "architectures", None) or filter(None, [otherwise]))
    what = names[0] if names else type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{what} is an encoder-decoder: expected a decoder-only causal language model")
    # Transformers uses the last name for a decoder that also sees images, such as Gemma 3 from four billion on.
    if names and not what.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise ValueError(f"{what} is not a causal language model: expected a decoder with a language-model head")


def class_of(config: Any) -> Any:
    """Return the class of transformers that reads a configuration's weights.

    For a model that also sees images, it is the class for text alone if there is one. Some have none (Mistral 3,
    LLaVA).

    Raises:
        ValueError: transformers knows no class that writes text.
    """
    kinds: list[Any] = [AutoModelForCausalLM, AutoModelForImageTextToText]
    from_checkpoint = getattr(config, "auto_map", None) or {}
    for kind in kinds:
        if kind.__name__ in from_checkpoint or type(config) in kind._model_mapping:
            return kind
    raise ValueError(f"transformers has no causal language model for {config.model_type}: expected a decoder of text")


def text_model_in(model: Any) -> Any:
    """Return the language model inside a model that also sees images, if transformers has a class for it (Qwen 3.5).

    It has the same modules, in the class that reads a checkpoint of text alone. Any other model is returned as it is.
    """
    config = model.config
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if not type(model).__name__.endswith("ForConditionalGeneration") or kind is None or isinstance(model, kind):
        return model
    text_config = copy.deepcopy(config.get_text_config())
    head = model.get_output_embeddings()
    text_config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    text_config.architectures = [kind.__name__]
    with torch.device("meta"):
        text = kind(text_config)
    prefix = text.base_model_prefix
    inner = [module for module in model.modules() if type(module) is type(getattr(text, prefix))]
    if len(inner) != 1 or head is None:
        return model
    setattr(text, prefix, inner[0])
    text.set_output_embeddings(head)
    if any(weight.is_meta for weight in (*text.parameters(), *text.buffers())):
        return model
    text.generation_config = model.generation_config
    return text.train(model.training)
