"""Which configurations are decoders of text, and which class of transformers reads them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


def check_architecture(config: Any, otherwise: str = "") -> None:
    """Raise ValueError unless a configuration names a decoder with a language-model head."""
    names = list(getattr(config, "architectures", None) or filter(None, [otherwise]))
    what = names[0] if names else type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{what} is an encoder-decoder: expected a decoder-only causal language model")
    # The last is what transformers calls a decoder that also sees pictures, as Gemma 3 from four billion on.
    if names and not what.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise ValueError(f"{what} is not a causal language model: expected a decoder with a language-model head")


def class_of(config: Any) -> Any:
    """Return the class of transformers that reads a configuration's weights: of text alone where there is one.

    Some checkpoints that also see pictures are known to transformers as such only (Mistral 3, LLaVA).

    Raises:
        ValueError: transformers knows no class that writes text.
    """
    kinds: list[Any] = [AutoModelForCausalLM, AutoModelForImageTextToText]
    theirs = getattr(config, "auto_map", None) or {}
    for kind in kinds:
        if kind.__name__ in theirs or type(config) in kind._model_mapping:
            return kind
    raise ValueError(f"transformers has no causal language model for {config.model_type}: expected a decoder of text")


def text_alone(model: Any) -> Any:
    """Return the language model inside one that also sees pictures, where transformers reads its text alone (Qwen 3.5).

    The modules are the model's own, in the class that a checkpoint of it is loaded by; any other model comes back.
    """
    config = model.config
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if not type(model).__name__.endswith("ForConditionalGeneration") or kind is None or isinstance(model, kind):
        return model
    written = copy.deepcopy(config.get_text_config())
    head = model.get_output_embeddings()
    written.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    written.architectures = [kind.__name__]
    with torch.device("meta"):
        text = kind(written)
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
