"""GGUF files, the format of llama.cpp. Transformers unpacks their weights into plain ones."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from xlingtox.text import first_line

_HEAD, _KIND = 2**20, b"general.file_type"
"""The number of bytes to read from the beginning of a file for its kind, and the key of the kind."""


def gguf_file(source: str) -> Path | None:
    """Return the GGUF file that a path names: itself, or the only one in a folder that has no other checkpoint.

    Raises:
        FileNotFoundError: there is no such file, or a folder holds several.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            reason = "it is a folder" if path.is_dir() else "there is no such file"
            raise FileNotFoundError(f"{source} is no checkpoint: {reason}")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        raise FileNotFoundError(f"{source} holds {len(files)} GGUF files: give the path of one, as {files[0]}")
    return files[0] if files else None


def packed_as(file: Path) -> str:
    """Return how a GGUF file packs its weights, such as `GGUF Q4_1`. Only the beginning of the file is read.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: the file is not a GGUF file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("a GGUF file needs the package gguf: pip install 'xlingtox[gguf]'")
    import gguf

    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head.startswith(b"GGUF"):
        raise ValueError(f"{file} is no GGUF file: it does not begin with GGUF")
    # A key is stored as its length and its name. The type of the value follows; here it is 4, a number of 32 bits.
    place = head.find(struct.pack("<Q", len(_KIND)) + _KIND + struct.pack("<I", 4))
    if place < 0:
        return "GGUF"
    (kind,) = struct.unpack_from("<I", head, place + 8 + len(_KIND) + 4)
    try:
        return f"GGUF {gguf.LlamaFileType(kind).name.removeprefix('MOSTLY_').removeprefix('ALL_')}"
    except ValueError:
        return "GGUF"


@contextlib.contextmanager
def errors_name(file: Path | None) -> Iterator[None]:
    """Make errors in the block name the GGUF file. A truncated file may fail anywhere in the packages that read it.

    Args:
        file: the file that is read in the block; None to leave errors as they are.

    Raises:
        ValueError: the file cannot be read, or is of a family that transformers does not read from GGUF.
    """
    try:
        yield
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        if file is None:
            raise
        raise ValueError(f"{file} cannot be read as GGUF: {first_line(error)}") from error


def is_from_gguf(model: Any) -> bool:
    """Return whether transformers read the model from a GGUF file."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    return str(getattr(method, "value", method)) == "gguf"


def as_plain(model: Any) -> Any:
    """Return the model without the note that it came from GGUF. With that note, transformers would not save it.

    Raises:
        ValueError: the model's weights are still packed.
    """
    if not is_from_gguf(model):
        return model
    if getattr(model.hf_quantizer, "packed_modules", None):
        raise ValueError(
            f"the weights of this {type(model).__name__} are still packed: read them with "
            "quantization_config=transformers.GgufConfig(dequantize=True), or give HookedLM.load the GGUF file"
        )
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._is_quantized = False
    return model


def unpacking_options() -> dict[str, Any]:
    """Return the options that make transformers unpack all weights. Newer releases may keep them packed."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bar that transformers shows while it unpacks weights."""
    unpacking: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    before = unpacking.tqdm
    unpacking.tqdm = functools.partial(before, disable=True)
    try:
        yield
    finally:
        unpacking.tqdm = before
