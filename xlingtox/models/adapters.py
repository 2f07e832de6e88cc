"""Adapters: LoRA weights beside a base, merged into it before its neurons are looked at."""

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
_ROUNDED = 0.05
"""Of the spread of logits: random Llamas of 40 layers round by 0.04 of it in bfloat16."""

_SHARE = 0.25
"""Of an adapter's own change: merged into an embedding that is tied to the output, they differ by 0.35 and more of it,
and rounding alone by less than 0.1."""

_FETCHED = (CONFIG, _WEIGHTS, "*token*", "*.json", "*.model")


def adapter_folder(source: str | Path, revision: str | None = None) -> Path | None:
    """The folder of an adapter: a folder itself, or where one from the hub is kept; None where there is none.

    Args:
        revision: of a hub name.
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
        fetched = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(_FETCHED)))
    except (OSError, HFValidationError):
        return None
    return fetched if (fetched / CONFIG).is_file() else None


def base_of(folder: Path) -> tuple[str, str | None]:
    """The name of the model that an adapter was trained on, and its revision where the adapter names one.

    Raises:
        ValueError: it does not say, or cannot be read.
    """
    told = _told(folder)
    if not (base := told.get("base_model_name_or_path")):
        raise ValueError(f"the adapter {folder} does not name its base: load(base, adapter={str(folder)!r})")
    return str(base), told.get("revision")


def _told(folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
        told["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} is broken ({error}): expected a JSON object with peft_type, as PEFT's save_pretrained "
            "writes it"
        ) from error
    return told


def merge_adapter(model: Any, source: str | Path, name: str) -> Any:
    """The model with a LoRA adapter in its weights: base value vectors under tuned logits would be a lie.

    An adapter on an embedding that is tied to the output changes the one and not the other, so the two are parted.

    Args:
        source: the adapter's folder, or its hub name.
        name: of the model, for messages.

    Raises:
        ValueError: the adapter is for another base, broken, or without weights to merge, or merging it changes what it
            says.
        FileNotFoundError: there is none, or none with weights in safetensors.
    """
    folder = check_adapter(source)
    said, stored = _told(folder).get("base_model_name_or_path") or name, _stored(folder)
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder)).eval()
        _check_all_used(adapted, stored)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"the adapter {source} is for another base than {name}: {_reason(error, model)}") from error
    if Path(said).name != Path(name).name:
        names = map(in_line, (folder, said, name))
        _LOG.warning("the adapter %s says that it was trained on %s; it is merged into %s", *names)
    return unloaded(adapted, name)


def check_adapter(source: str | Path) -> Path:
    """The folder of an adapter, after all that can be seen of it without its base: before that is read.

    Raises:
        ValueError: it cannot be read, puts something before the text instead of changing weights, or PEFT is missing.
        FileNotFoundError: there is none, or none with weights in safetensors.
    """
    folder = adapter_folder(source)
    if folder is None:
        raise FileNotFoundError(f"{source} is no adapter: it has no {CONFIG}")
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(f"the adapter {source} has no {_WEIGHTS}; pickled weights are not read")
    if importlib.util.find_spec("peft") is None:
        raise ValueError("an adapter needs the package peft: pip install peft")
    _told(folder)
    _stored(folder)
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is not one that the installed PEFT can read: {error!r}") from error
    if config.is_prompt_learning:
        _refuse_kind(str(source), config)
    return folder


def _refuse_kind(name: str, config: Any) -> NoReturn:
    kind = getattr(config.peft_type, "value", config.peft_type)
    raise ValueError(
        f"the adapter on {name} is of kind {kind}, which puts something before the text and has no weights to "
        "merge: expected LoRA, or another kind that changes weights"
    )


def _stored(folder: Path) -> set[str]:
    """The names of an adapter's weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{folder / _WEIGHTS} is broken ({error}): fetch or save it anew") from error


def _reason(error: Exception, model: Any) -> str:
    """What is wrong, in a line: torch tells it below a headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "mismatch" in line), lines[0])
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if any(f".{name.rpartition('.')[2]}." in reason for name, module in model.named_modules() if module in ends):
        reason += (
            " Where the adapter came with more tokens, resize the base first: model.resize_token_embeddings"
            "(len(tokenizer)), and load(model, tokenizer=..., adapter=...)"
        )
    return reason


def is_adapted(model: Any) -> bool:
    """Whether PEFT wraps the model."""
    return hasattr(model, "get_base_model")


@torch.no_grad()
def unloaded(adapted: Any, name: str) -> Any:
    """The model that a PEFT model wraps, with the adapter in its weights.

    Raises:
        ValueError: it says something else then, or the adapter has no weights.
    """
    if not hasattr(adapted, "merge_and_unload"):
        _refuse_kind(name, adapted.active_peft_config)
    _check_biases(adapted, name)
    model = adapted.get_base_model()
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (2, 32), generator=torch.Generator().manual_seed(0)).to(model.device)
    before = adapted.eval()(input_ids=ids).logits
    without = before
    if rounded := before.dtype.itemsize <= 2:
        with adapted.disable_adapter():
            without = adapted(input_ids=ids).logits
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if any(hasattr(end, "get_base_layer") for end in ends):
        _part(model, *ends)
    try:
        whole: Any = adapted.merge_and_unload()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"the adapter cannot be merged into {name}: {_reason(error, model)}") from error
    if not _survived(whole(input_ids=ids).logits, before, without):
        way = f" ({before.dtype} rounds them: if that is all, dtype=torch.float32 mends it)" if rounded else ""
        raise ValueError(f"the adapter cannot be merged into {name}: its logits change{way}")
    return whole


def _check_biases(adapted: Any, name: str) -> None:
    """Raise ValueError where an adapter has a bias and the layer below it has none to take it."""
    for path, module in adapted.named_modules():
        if any(getattr(module, "lora_bias", {}).values()) and getattr(module.get_base_layer(), "bias", None) is None:
            raise ValueError(
                f"the adapter cannot be merged into {name}: it has biases (lora_bias), and {path} has none to add "
                "them to; train it without lora_bias"
            )


def _survived(merged: Tensor, before: Tensor, without: Tensor) -> bool:
    """Whether merged weights say what the adapter beside them said, but for rounding.

    The more layers, the more 16 bits round, of single logits even by their largest. So there what counts is the change
    of all of them: against their spread, and against what the adapter itself changes.
    """
    if before.dtype.itemsize > 2:
        return same_but_for_rounding(merged, before)
    changed, own = ((each.float() - before.float()).square().mean().sqrt() for each in (merged, without))
    return bool(changed <= torch.maximum(_ROUNDED * before.float().std(), _SHARE * own))


def _part(model: Any, embedding: Any, head: Any) -> None:
    """Give the output embedding weights of its own, if it shares those of the input embedding."""
    embedding, head = (getattr(end, "get_base_layer", lambda end=end: end)() for end in (embedding, head))
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _check_all_used(adapted: Any, stored: set[str]) -> None:
    """Raise ValueError unless the adapter's weights are those that this model has places for: PEFT only warns."""
    from peft import get_peft_model_state_dict

    needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    for what, names in (("has no weights for", needed - stored), ("has weights for", _lora(stored - needed))):
        if names:
            other = "" if what == "has no weights for" else ", which the model does not have"
            raise ValueError(f"it {what} {min(names)}{other}")


def _lora(names: Iterable[str]) -> set[str]:
    return {name for name in names if "lora_" in name}


def check_merged(model: Any) -> None:
    """Raise ValueError where an adapter stands beside the weights that it changes, also in a bridge's own model."""
    # What PEFT puts in a module's place keeps the module so.
    inside = (each for whole in (model, getattr(model, "original_model", None) or model) for each in whole.modules())
    if any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in inside):
        raise ValueError(
            "the model holds an adapter that is not merged: its value vectors would be the base's. "
            "Merge it first (PEFT: model.merge_and_unload())"
        )
