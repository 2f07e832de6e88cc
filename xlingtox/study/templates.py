"""Settings files to begin with: commented, one for each model of the paper and for two that come with packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from xlingtox import files
from xlingtox.checking import checked

Like = Literal[
    "ours",
    "mgpt",
    "bloom-1b7",
    "bloom-7b1",
    "llama2-7b",
    "llama3-8b",
    "aya-23-8b",
    "smollm2",
    "smollm2-taught",
    "smollm2-taught-study",
]
"""The names of the templates."""

_OWN = {
    "ours": "mini.toml",
    "smollm2": "smollm2.toml",
    "smollm2-taught": "smollm2-taught.toml",
    "smollm2-taught-study": "smollm2-taught-study.toml",
}
"""Templates that have a file of their own. The others fill in `paper.toml`."""

_QUANTISED = 'dtype = "bfloat16"'
_OPEN = "Its weights are open to everybody."
_ASKED = "Its weights are on the hub for those who accept a licence there and log in with `hf auth login`."

_MODELS: Mapping[str, tuple[str, str, str, str]] = {
    "mgpt": ("ai-forever/mGPT", '# dtype = "bfloat16"', "paper-full", _OPEN),
    "bloom-1b7": ("bigscience/bloom-1b7", '# dtype = "bfloat16"', "paper-full", _OPEN),
    "bloom-7b1": ("bigscience/bloom-7b1", _QUANTISED, "paper-qlora", _OPEN),
    "llama2-7b": ("meta-llama/Llama-2-7b-hf", _QUANTISED, "paper-qlora", _ASKED),
    "llama3-8b": ("meta-llama/Meta-Llama-3-8B", _QUANTISED, "paper-qlora", _ASKED),
    "aya-23-8b": ("CohereLabs/aya-23-8B", _QUANTISED, "paper-qlora", _ASKED),
}
"""Each model of the paper: its name on the hub, the line about its type, its recipe, and how to get it."""


@checked
def text(like: Like) -> str:
    """Return a template.

    Raises:
        ValueError: there is no such template.

    Example:
        >>> "ai-forever/mGPT" in xt.study.templates.text("mgpt")
        True
    """
    if like in _OWN:
        return _file(_OWN[like]).read_text(encoding="utf-8")
    source, dtype, recipe, access = _MODELS[like]
    content = _file("paper.toml").read_text(encoding="utf-8")
    for mark, value in {"SOURCE": source, "DTYPE": dtype, "RECIPE": recipe, "ACCESS": access}.items():
        content = content.replace(f"@{mark}@", value)
    return content


@checked
def write(path: str | Path, *, like: Like = "ours") -> Path:
    """Write a template to a new file, and return its path.

    Raises:
        FileExistsError: there is a file already; it is left as it is.
        ValueError: there is no such template.

    Example:
        >>> xt.study.templates.write(tmp_path / "mine.toml", like="mgpt").name
        'mine.toml'
    """
    place = Path(path).expanduser()
    content = text(like)
    if place.exists():
        raise FileExistsError(f"{place} is there already: choose another name, or delete it")
    files.write_text(place, content)
    return place


@checked
def file(like: Literal["ours", "smollm2", "smollm2-taught", "smollm2-taught-study"]) -> Path:
    """Return the file of a template that needs no data of the user's, to run it as it is.

    Example:
        >>> xt.study.templates.file("ours").name
        'mini.toml'
    """
    return _file(_OWN[like])


def _file(name: str) -> Path:
    """Return a template's file: inside an installed package, or in `assets` of a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "settings_files", here.parents[1] / "assets"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the template {name} is missing: reinstall xlingtox, or run from a whole checkout")
