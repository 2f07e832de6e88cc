"""Ways in: from a name, a folder or a model in memory to a Hugging Face model and its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from xlingtox.models import gguf_files
from xlingtox.models import quantised as packing
from xlingtox.models.adapters import (
    adapter_folder,
    base_of,
    check_adapter,
    check_merged,
    is_adapted,
    merge_adapter,
    unloaded,
)
from xlingtox.models.architectures import check_architecture, class_of, text_alone
from xlingtox.models.devices import DeviceMap, check_device, default_device, placement
from xlingtox.models.precision import as_computed, check_dtype, computed_in
from xlingtox.models.quantised import Bits
from xlingtox.models.weight_files import check_weight_files
from xlingtox.text import first_line, in_line

_LOG = logging.getLogger(__name__)

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Loaded:
    """A model that nobody else holds.

    Attributes:
        model: the Hugging Face model, in evaluation mode.
        tokenizer: as it came.
        name: the hub name, folder or class that it came from.
        revision: of a hub name, as it was asked for.
        stored: the dtype in which its checkpoint has it, unless another was asked for; None as it is held.
        unpacked_from: of weights that a GGUF file holds packed, how it does.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None
    stored: torch.dtype | None = None
    unpacked_from: str | None = None


def mini_checkpoint() -> Path:
    """The folder of the shipped miniature: inside an installed package, or `assets/mini` of a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "mini" / "checkpoint", here.parent / "assets" / "mini"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError("the miniature's checkpoint is missing: reinstall xlingtox, or run from a whole checkout")


@contextlib.contextmanager
def no_weight_bars() -> Iterator[None]:
    """Without transformers' own bars, as for reading and writing weights; those of downloads stay."""

    def silent(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **{**options, "disable": True})

    before = transformers.utils.logging.set_tqdm_hook(silent)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


def from_memory(
    source: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: str | Path | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
) -> Loaded:
    """A copy of a model in memory; the one given is left as it is."""
    if tokenizer is None:
        raise ValueError(f"a {type(source).__name__} in memory needs its tokenizer: load(model, tokenizer=...)")
    check_device(device)
    check_dtype(dtype)
    unpacked_from = "GGUF" if gguf_files.is_from_gguf(source) else None
    model: Any = packing.steady(gguf_files.as_plain(copy.deepcopy(source)))
    if is_adapted(model):
        model = unloaded(model, type(model.get_base_model()).__name__)
    check_architecture(model.config, type(model).__name__)
    check_merged(model)
    model = text_alone(model)
    name = getattr(source.config, "_name_or_path", "") or type(model).__name__
    if without_hooks(model):
        _LOG.warning("%s: hooks that stand on the given model are not taken along", in_line(name))
    if device is not None:
        model = model.to(device)
    model, stored = as_computed(model, dtype, name)
    if adapter is not None:
        model = merge_adapter(model, adapter, name)
    return Loaded(writable(model).eval(), tokenizer, name, None, stored, unpacked_from)


def without_hooks(model: Any) -> bool:
    """Take all PyTorch hooks from a model; whether there were any."""
    found = False
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            found |= bool(hooks)
            hooks.clear()
    return found


def from_checkpoint(
    source: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    bits: Bits | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """A model from a checkpoint folder, a GGUF file, a folder with a LoRA adapter, or the hub."""
    path = str(mini_checkpoint() if source == "mini" else Path(source).expanduser())
    packed, unpacked_from = gguf_files.gguf_file(path), None
    if not Path(path).exists() and (path.count("/") > 1 or path.startswith((".", "/"))):
        raise FileNotFoundError(f"{source} is no checkpoint: there is no such folder")
    if Path(path).exists() and revision is not None:
        raise ValueError(f"revision {revision!r} is of a hub name; {source} is a folder")
    name, asked = source if adapter is None else f"{source} + {adapter}", revision
    # Transformers would put an adapter beside the weights, where value vectors are still those of the base.
    if adapter is None and (found := adapter_folder(path, revision)) is not None:
        adapter, (path, revision) = found, base_of(found)
        packed = gguf_files.gguf_file(path)
    folder = Path(path)
    if packed is not None:
        if bits is not None:
            raise ValueError(
                f"bits={bits} is asked of {packed}, a GGUF file: its weights are unpacked while it is read"
            )
        unpacked_from, folder = gguf_files.packed_as(packed), packed.parent
    elif folder.exists() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no checkpoint: it has no config.json")
    if adapter is not None and bits is not None:
        raise ValueError(
            "an adapter is not merged into weights of 8 or 4 bits, which would round it: load without bits"
        )
    where: dict[str, Any] = {"local_files_only": True} if folder.exists() else {"revision": revision or "main"}
    where["trust_remote_code"] = trust_remote_code
    check_device(device)
    check_dtype(dtype)
    placed = placement(device, device_map) | packing.quantised(bits, dtype)
    if packed is not None:
        path, where = str(folder), where | {"gguf_file": packed.name}
    try:
        with gguf_files.readable(packed):
            config = _config(path, where)
        check_architecture(config)
        kind = class_of(config)
        with gguf_files.readable(packed):
            own = tokenizer or _own_tokenizer(path, adapter, where)
    except OSError as error:
        if "valid JSON" in str(error):
            raise ValueError(f"{source} has a configuration that cannot be read: {first_line(error)}") from error
        what = "checkpoint folder" if folder.exists() else "folder, nor a model that the hub gives us"
        raise FileNotFoundError(f"{source} is no {what}: {first_line(error)}") from error
    if len(own) <= len(own.all_special_ids):
        raise FileNotFoundError(f"{path} has no tokenizer: give one with tokenizer=...")
    packing.check_stored(config, bits, source, adapter)
    if packing.stored_bits(config) is not None:
        placed.pop("quantization_config", None)
    if adapter is not None:
        check_adapter(adapter)
    if packed is None:
        check_weight_files(path, config, revision)
        read_in = dtype or "auto"
        if dtype is None and bits is not None and isinstance(getattr(config, "dtype", None), torch.dtype):
            # What bits leave as it was cannot be cast when it is read.
            place = default_device() if device is None else device
            read_in = computed_in(config.dtype, place, name)
        with packing.ordinary_layers(config, bits):
            model = read_weights(kind, path, dtype=read_in, **where, **placed)
        packing.check_taken(packing.steady(model), bits, source)
    else:
        with gguf_files.no_bars(), gguf_files.readable(packed):
            held = placed | gguf_files.held_plain()
            model = read_weights(kind, path, dtype=dtype or torch.float32, **where, **held)
        model = gguf_files.as_plain(model)
    if "device_map" not in placed:
        model = model.to(device or default_device())
    check_merged(model)
    model, stored = as_computed(model, dtype, name)
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError(
            f"device_map leaves weights of {source} on disk, where neurons cannot be read: use more memory"
        )
    if adapter is not None:
        model = merge_adapter(model, adapter, path)
    return Loaded(writable(model).eval(), own, name, asked, stored, unpacked_from)


def writable(model: Any) -> Any:
    """The model without settings of sampling where it decodes greedily: there they do nothing, but transformers, which
    reads them, as Llama 2's checkpoint has them, does not write them.
    """
    told = getattr(model, "generation_config", None)
    if told is not None and told.do_sample is not True:
        for name in _SAMPLING:
            if getattr(told, name, None) is not None:
                setattr(told, name, None)
    return model


def read_weights(kind: Any, source: str | Path, **how: Any) -> Any:
    """What `kind.from_pretrained` gives, from safetensors alone: a pickled file can run code when it is read.

    For a model whose default branch on the hub has pickled weights only, transformers takes the copy that the hub's
    own converter made.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are broken, or some that the model needs are not among them; transformers would draw those at
            random.
    """
    try:
        with no_weight_bars():
            model, told = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True, **how)
    except SafetensorError as error:
        raise ValueError(f"{source} has weights that are broken ({error}): fetch or save them anew") from error
    except OSError as error:
        raise FileNotFoundError(
            f"{source} has no weights in safetensors, and pickled ones (.bin), which can run code, are not read: "
            f"if you trust them, convert them with transformers' save_pretrained ({first_line(error)})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{source} cannot be read by transformers: {first_line(error)}") from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ValueError(f"{source} has weights of other shapes than its configuration says: fetch it anew") from error
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{source} lacks {len(missing)} of the model's weights, {missing[0]} the first of them")
    return model


def _config(path: str, where: Mapping[str, Any]) -> Any:
    """The configuration of a checkpoint; where transformers does not know its family, that in a line."""
    try:
        return AutoConfig.from_pretrained(path, **where)
    except (ValueError, ImportError) as error:
        advice = " (give trust_remote_code=True if you trust it)" if "trust_remote_code" in str(error) else ""
        raise ValueError(f"{path} cannot be read by transformers: {first_line(error)}{advice}") from error


def _own_tokenizer(path: str, adapter: str | Path | None, where: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    beside = None if adapter is None else adapter_folder(adapter)
    if beside is not None and (beside / "tokenizer_config.json").is_file():
        rest = {option: value for option, value in where.items() if option != "gguf_file"}
        path, where = str(beside), rest | {"local_files_only": True}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **where)
    except (OSError, ImportError):
        raise
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"{path} has a tokenizer that cannot be read: {first_line(error)}") from error
    return tokenizer
