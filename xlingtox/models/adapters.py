"""Adapters: LoRA weights that were trained on top of a base model. They are merged into it before neurons are read."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from xlingtox.models.backend import same_but_for_rounding
from xlingtox.text import in_line

_LOG = logging.getLogger(__name__)

CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The names of an adapter's two files."""

_ROUNDING = 0.05
"""The share of the logits' spread that rounding may change. Random Llamas of 40 layers round by 0.04 in bfloat16."""

_SHARE = 0.25
"""The share of an adapter's own change of the logits by which merging may change them. Rounding alone changes less than
0.1. An adapter that is wrongly merged into an embedding tied to the output changes 0.35 and more."""

_DOWNLOADED = (CONFIG, _WEIGHTS, "*token*", "*.json", "*.model")
"""Patterns of the files that are downloaded: an adapter's own, and its tokenizer's."""


def adapter_folder(source: str | Path, revision: str | None = None) -> Path | None:
    """Return the folder of an adapter, downloaded if it is on the hub; None where there is no adapter.

    Args:
        revision: the revision of a hub name.
    """
    folder = Path(source).expanduser()
    if folder.exists():
        return folder if (folder / CONFIG).is_file() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(str(source), revision=revision) is None:
            return None
        downloaded = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(_DOWNLOADED)))
    except (OSError, HFValidationError):
        return None
    return downloaded if (downloaded / CONFIG).is_file() else None


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return the name of the model that an adapter was trained on, and its revision if the adapter names one.

    Raises:
        ValueError: the adapter does not name its base, or cannot be read.
    """
    config = _read_config(folder)
    if not (base := config.get("base_model_name_or_path")):
        raise ValueError(f"the adapter {folder} does not name its base: load(base, adapter={str(folder)!r})")
    return str(base), config.get("revision")


def _read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration, or raise ValueError if it is broken."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
        config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} is broken ({error}): expected a JSON object with peft_type, as PEFT's save_pretrained "
            "writes it"
        ) from error
    return config


def merge_adapter(model: Any, source: str | Path, name: str) -> Any:
    """Return the model with a LoRA adapter merged into its weights.

    Without merging, value vectors would be the base's and logits the tuned model's. If an adapter changes one of two
    tied embeddings, the two are untied, because the other must stay.

    Args:
        source: the adapter's folder, or its hub name.
        name: the model's name, for messages.

    Raises:
        ValueError: the adapter is for another base, broken, or without weights to merge, or its merging changes
            logits.
        FileNotFoundError: there is no adapter, or it has no weights in safetensors.
    """
    folder = check_adapter(source)
    base_name, stored = _read_config(folder).get("base_model_name_or_path") or name, _weight_names(folder)
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder)).eval()
        _check_all_used(adapted, stored)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"the adapter {source} is for another base than {name}: {_reason(error, model)}") from error
    if Path(base_name).name != Path(name).name:
        names = map(in_line, (folder, base_name, name))
        _LOG.warning("the adapter %s says that it was trained on %s; it is merged into %s", *names)
    return unwrap_merged(adapted, name)


def check_adapter(source: str | Path) -> Path:
    """Return the folder of an adapter, after all checks that do not need its base, which takes long to read.

    Raises:
        ValueError: the adapter cannot be read, or adds prompt tokens instead of changing weights, or PEFT is missing.
        FileNotFoundError: there is no adapter, or it has no weights in safetensors.
    """
    folder = adapter_folder(source)
    if folder is None:
        raise FileNotFoundError(f"{source} is no adapter: it has no {CONFIG}")
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(f"the adapter {source} has no {_WEIGHTS}; pickled weights are not read")
    if importlib.util.find_spec("peft") is None:
        raise ImportError("an adapter needs the package peft: pip install 'xlingtox[lora]'")
    _read_config(folder)
    _weight_names(folder)
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is not one that the installed PEFT can read: {error!r}") from error
    if config.is_prompt_learning:
        _refuse_kind(str(source), config)
    return folder


def _refuse_kind(name: str, config: Any) -> NoReturn:
    """Raise ValueError about an adapter that has no weights to merge."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    raise ValueError(
        f"the adapter on {name} is of kind {kind}, which adds prompt tokens before the text and has no weights to "
        "merge: expected LoRA, or another kind that changes weights"
    )


def _weight_names(folder: Path) -> set[str]:
    """Return the names of an adapter's weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{folder / _WEIGHTS} is broken ({error}): download or save it again") from error


def _reason(error: Exception, model: Any) -> str:
    """Return the cause of an error in one line. Torch writes it below a headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "mismatch" in line), lines[0])
    embeddings = model.get_input_embeddings(), model.get_output_embeddings()
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in embeddings]
    if any(f".{name}." in reason for name in names):
        reason += (
            " Where the adapter came with more tokens, resize the base first: model.resize_token_embeddings"
            "(len(tokenizer)), and load(model, tokenizer=..., adapter=...)"
        )
    return reason


def is_adapted(model: Any) -> bool:
    """Return whether PEFT wraps the model."""
    return hasattr(model, "get_base_model")


@torch.no_grad()
def unwrap_merged(adapted: Any, name: str) -> Any:
    """Return the model that a PEFT model wraps, with the adapter merged into its weights.

    Raises:
        ValueError: merging changes the logits, or the adapter has no weights.
    """
    if not hasattr(adapted, "merge_and_unload"):
        _refuse_kind(name, adapted.active_peft_config)
    _check_biases(adapted, name)
    model = adapted.get_base_model()
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (2, 32), generator=torch.Generator().manual_seed(0)).to(model.device)
    adapted_logits = adapted.eval()(input_ids=ids).logits
    base_logits = adapted_logits
    if in_16_bits := adapted_logits.dtype.itemsize <= 2:
        with adapted.disable_adapter():
            base_logits = adapted(input_ids=ids).logits
    embeddings = model.get_input_embeddings(), model.get_output_embeddings()
    if any(hasattr(embedding, "get_base_layer") for embedding in embeddings):
        _untie(model, *embeddings)
    try:
        merged: Any = adapted.merge_and_unload()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"the adapter cannot be merged into {name}: {_reason(error, model)}") from error
    if not _survived(merged(input_ids=ids).logits, adapted_logits, base_logits):
        dtype = adapted_logits.dtype
        advice = f" ({dtype} rounds them: if that is all, dtype=torch.float32 mends it)" if in_16_bits else ""
        raise ValueError(f"the adapter cannot be merged into {name}: its logits change{advice}")
    return merged


def _check_biases(adapted: Any, name: str) -> None:
    """Raise ValueError if an adapter has a bias for a layer without one, so that the two cannot be added."""
    for path, module in adapted.named_modules():
        if any(getattr(module, "lora_bias", {}).values()) and getattr(module.get_base_layer(), "bias", None) is None:
            raise ValueError(
                f"the adapter cannot be merged into {name}: it has biases (lora_bias), and {path} has none to add "
                "them to; train it without lora_bias"
            )


def _survived(merged: Tensor, adapted_logits: Tensor, base_logits: Tensor) -> bool:
    """Return whether logits are the same after merging as before, but for rounding.

    In 16 bits, rounding grows with the number of layers, and may change a single logit by as much as the largest one.
    So there the mean change of the logits is compared with their spread, and with the change that the adapter makes.

    Args:
        merged: the logits after merging.
        adapted_logits: the logits of the base with the adapter, before merging.
        base_logits: the logits of the base alone.
    """
    if adapted_logits.dtype.itemsize > 2:
        return same_but_for_rounding(merged, adapted_logits)
    by_merging, by_adapter = (
        (logits.float() - adapted_logits.float()).square().mean().sqrt() for logits in (merged, base_logits)
    )
    return bool(by_merging <= torch.maximum(_ROUNDING * adapted_logits.float().std(), _SHARE * by_adapter))


def _untie(model: Any, embedding: Any, head: Any) -> None:
    """Give the output embedding its own weights, if it shares those of the input embedding."""
    embedding, head = (getattr(layer, "get_base_layer", lambda layer=layer: layer)() for layer in (embedding, head))
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _check_all_used(adapted: Any, stored: set[str]) -> None:
    """Raise ValueError unless the adapter's weights are exactly those that it adds to this model. PEFT only warns."""
    from peft import get_peft_model_state_dict

    needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    for what, names in (("has no weights for", needed - stored), ("has weights for", _lora(stored - needed))):
        if names:
            reason = "" if what == "has no weights for" else ", which the model does not have"
            raise ValueError(f"it {what} {min(names)}{reason}")


def _lora(names: Iterable[str]) -> set[str]:
    """Return those names that are of LoRA weights."""
    return {name for name in names if "lora_" in name}


def check_merged(model: Any) -> None:
    """Raise ValueError if the model, or the model inside a bridge, holds an adapter that is not merged."""
    models = (model, getattr(model, "original_model", None) or model)
    # PEFT replaces a module by a layer with these attributes.
    if any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for lm in models for module in lm.modules()):
        raise ValueError(
            "the model holds an adapter that is not merged: its value vectors would be the base's. "
            "Merge it first (PEFT: model.merge_and_unload())"
        )
