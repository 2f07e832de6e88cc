"""The keys of a table in a settings file as the arguments of a function: checked by its signature, before any call."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from xlingtox import languages
from xlingtox.checking.guard import Parameter, parameters
from xlingtox.study.mistakes import Mistakes, Place, did_you_mean, toml

DTYPES = ("float32", "bfloat16", "float16")
"""The types of weights by the names that a settings file has for them."""

_SECRET = frozenset({"api_key", "password"})
"""Arguments that a settings file gives by the name of an environment variable only."""

_CODES = frozenset({"language", "languages"})

_VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
"""The names of environment variables that messages show. Anything else may be the secret itself."""


@dataclass(frozen=True)
class Signature:
    """A function that a settings file calls, and how the keys of its table become arguments.

    Attributes:
        call: the function, or a class.
        renamed: keys of the file that stand for arguments of another name, such as `path` for `source`.
        files: arguments that are files or folders, which must exist.
        hub: whether the files may also be names on the hub.
        left_out: arguments that no key fills.
        required: arguments that must be given, although the function has a default.

    Example:
        >>> from xlingtox.study.arguments import Signature
        >>> Signature(xt.data.rtp_lx).keys
        ('path', 'password_env', 'languages')
    """

    call: Callable[..., Any]
    renamed: Mapping[str, str] = field(default_factory=lambda: {"path": "source"})
    files: frozenset[str] = frozenset({"source"})
    hub: bool = False
    left_out: frozenset[str] = frozenset({"progress"})
    required: frozenset[str] = frozenset()

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters that a key may fill, by name."""
        call = self.call.__init__ if isinstance(self.call, type) else self.call  # type: ignore[misc]
        checked = getattr(call, "__checked__", call)
        return {
            parameter.name: parameter
            for parameter in parameters(checked)
            if parameter.name not in self.left_out and parameter.name not in ("self", "cls")
        }

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a table may have, in the order of the arguments."""
        return tuple(map(self.key, self.parameters))

    def key(self, argument: str) -> str:
        """Return the key that fills an argument."""
        key = next((key for key, name in self.renamed.items() if name == argument), argument)
        return f"{key}_env" if argument in _SECRET else key

    def needs(self, argument: str) -> bool:
        """Return whether an argument must be given."""
        signature = inspect.signature(self.call)
        return argument in self.required or signature.parameters[argument].default is inspect.Parameter.empty


def arguments(
    signature: Signature, table: Mapping[str, Any], place: Place, folder: Path, mistakes: Mistakes
) -> dict[str, Any]:
    """Return the arguments that a table gives; what is wrong with it goes to `mistakes`.

    Args:
        table: the keys and values, without the one that named the function.
        place: where the table stands in the file.
        folder: the folder to which paths are relative.
    """
    given: dict[str, Any] = {}
    by_key = {signature.key(name): parameter for name, parameter in signature.parameters.items()}
    for key, value in table.items():
        where = (*place, key)
        if key in by_key:
            parameter = by_key[key]
            found = secret(value, where, mistakes) if key.endswith("_env") else value
            if found is not None:
                given[parameter.name] = _converted(signature, parameter, found, where, folder, mistakes)
        elif f"{key}_env" in by_key or key in _SECRET or f"{key.removeprefix('api_')}_env" in by_key:
            instead = f"{key.removeprefix('api_')}_env"
            mistakes.add(where, f'is a secret: write {instead} = "NAME", the name of an environment variable')
        else:
            mistakes.unknown(where, by_key)
    for key, parameter in by_key.items():
        if key not in table and parameter.name not in given and signature.needs(parameter.name):
            unknown = [name for name in table if name not in by_key]
            mistakes.missing((*place, key), f"write {key} = {_example(parameter.name)}", unknown)
    return given


def _example(argument: str) -> str:
    examples = {"source": '"the file or folder"', "columns": '{our_column = "the column of the file"}'}
    return examples.get(argument, '["en", "es"]' if argument == "languages" else "...")


def secret(name: Any, place: Place, mistakes: Mistakes) -> str | None:
    """Return the value of an environment variable. Messages hold its name, never its value."""
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        mistakes.add(place, 'is no name of an environment variable: write a name such as "RTP_LX_PASSWORD", no secret')
        return None
    if not os.environ.get(name):
        mistakes.add(place, f"names the environment variable {name}, which is not set: set it with export {name}=...")
        return None
    return os.environ[name]


def _converted(
    signature: Signature, parameter: Parameter, value: Any, place: Place, folder: Path, mistakes: Mistakes
) -> Any:
    """Return a value as the function takes it."""
    if parameter.name == "dtype":
        return dtype(value, place, mistakes)
    try:
        converted = parameter.converted(value, signature.call, ())
    except (TypeError, ValueError) as error:
        _, _, expected = str(error).rpartition(", expected ")
        mistakes.value(place, value, f"write {expected}")
        return value
    if parameter.name in signature.files:
        return existing(value, place, folder, mistakes, hub=signature.hub)
    if parameter.name in _CODES:
        check_codes(value, place, mistakes)
    if parameter.name in ("n", "batch_size") and isinstance(value, int) and value < 1:
        mistakes.value(place, value, "write a whole number of at least 1")
    return converted


def dtype(value: Any, place: Place, mistakes: Mistakes) -> Any:
    """Return a type of torch by its name."""
    if value not in DTYPES:
        mistakes.value(place, value, f"write one of {', '.join(DTYPES)}")
        return None
    return getattr(torch, value)


def check_codes(codes: Any, place: Place, mistakes: Mistakes, among: Collection[str] = languages.NAMES) -> None:
    """Find codes of languages that are unknown."""
    for code in [codes] if isinstance(codes, str) else codes:
        if code not in among:
            names = {name.lower(): known for known, name in languages.NAMES.items() if known in among}
            near = languages.spelled(code) or names.get(str(code).lower())
            instead = f"write {toml(near)}" if near in among else did_you_mean(str(code), sorted(among))
            mistakes.value(place, code, f"it is no known language: {instead}")


def existing(value: Any, place: Place, folder: Path, mistakes: Mistakes, *, hub: bool = False) -> Any:
    """Return the path of a file or folder that exists, or a name on the hub where that is allowed.

    A dict of files is returned with the path of each.
    """
    if isinstance(value, Mapping):
        check_codes(value, place, mistakes)
        return {code: existing(item, (*place, code), folder, mistakes) for code, item in value.items()}
    if isinstance(value, list | tuple):
        return [existing(item, (*place, i), folder, mistakes) for i, item in enumerate(value)]
    path = resolved(value, folder)
    if path.exists():
        return path
    if hub and is_hub_name(str(value), folder):
        return str(value)
    also = ", nor a name on the hub" if hub else ""
    mistakes.value(place, str(value), f"there is no such file or folder{also}: write a path relative to {folder}")
    return path


def resolved(value: str | Path, folder: Path) -> Path:
    """Return a path of the settings file: relative to its folder, `~` is the home folder."""
    return folder / Path(value).expanduser()


def is_hub_name(name: str, folder: Path) -> bool:
    """Return whether a name that is no path here may be one on the hub, such as `ai-forever/mGPT` or `gpt2`."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        return False
    has_folder = "/" in name and (folder / name.split("/")[0]).is_dir()
    return not has_folder and Path(name).suffix.lower() not in {
        *(".gguf", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".zip", ".parquet", ".toml")
    }
