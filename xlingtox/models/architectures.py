"""Architectures: refuse models that are not decoders of text, and find the transformers class for the others."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


def check_architecture(config: Any, class_name: str = "") -> None:
    """Raise ValueError unless a configuration names a decoder with a language-model head.

    Args:
        class_name: the class of the model, for a configuration that names none.
    """
    names = list(getattr(config, "architectures", None) or filter(None, [class_name]))
    architecture = names[0] if names else type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{architecture} is an encoder-decoder: expected a decoder-only causal language model")
    # The last ending is that of decoders that also see images, such as Gemma 3 of four billion parameters or more.
    if names and not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise ValueError(
            f"{architecture} is not a causal language model: expected a decoder with a language-model head"
        )


def class_of(config: Any) -> Any:
    """Return the transformers class that reads the weights of a configuration.

    For a model that also sees images, this is the family's class for text alone, if there is one. Mistral 3 and LLaVA
    have none.

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

    It shares the model's modules, and has the class that `class_of` gives. Any other model is returned as it is.
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
