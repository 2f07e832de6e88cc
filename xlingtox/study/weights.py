"""Models and data that must be fetched or accepted first: what is missing, how large it is, and where to get it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from xlingtox.checking import checked
from xlingtox.study.costs import Shape


@checked
@dataclass(frozen=True)
class Licence:
    """Terms that must be accepted before something can be used.

    Attributes:
        of: the model or the data set.
        terms: the name of the licence.
        place: the page where it is accepted.
        then: what to do after that, as a sentence.

    Example:
        >>> xt.study.weights.licences(["jigsaw"])[0].terms
        "the competition's rules on Kaggle"
    """

    of: str
    terms: str
    place: str
    then: str


@dataclass(frozen=True)
class _Known:
    """One of the paper's models: its licence, and its sizes as they are published."""

    terms: str
    gated: bool
    shape: Shape


def _shape(billions: float, n_layers: int, d_model: int, d_mlp: int, n_vocab: int, number_bytes: int = 2) -> Shape:
    n = int(billions * 1e9)
    return Shape(n, n_layers, d_model, d_mlp, n_vocab, number_bytes * n, number_bytes, "cuda")


_RAIL, _LLAMA_2 = "BigScience RAIL 1.0", "the Llama 2 Community License"
_LLAMA_3 = "the Meta Llama 3 Community License"

_PAPERS: Mapping[str, _Known] = {
    "ai-forever/mGPT": _Known("Apache 2.0", False, _shape(1.42, 24, 2048, 8192, 100_000, 4)),
    "bigscience/bloom-1b7": _Known(_RAIL, False, _shape(1.72, 24, 2048, 8192, 250_880)),
    "bigscience/bloom-7b1": _Known(_RAIL, False, _shape(7.07, 30, 4096, 16_384, 250_880)),
    "meta-llama/Llama-2-7b-hf": _Known(_LLAMA_2, True, _shape(6.74, 32, 4096, 11_008, 32_000)),
    "meta-llama/Meta-Llama-3-8B": _Known(_LLAMA_3, True, _shape(8.03, 32, 4096, 14_336, 128_256)),
    "CohereLabs/aya-23-8B": _Known("CC-BY-NC 4.0", True, _shape(8.03, 32, 4096, 14_336, 256_000)),
}
"""The paper's models by their names on the hub. The sizes are published ones, rounded."""

_RENAMED = {"CohereForAI/aya-23-8B": "CohereLabs/aya-23-8B"}

_OF_DATA = {
    "rtp_lx": Licence(
        "RTP-LX",
        "its terms of use",
        "https://github.com/microsoft/RTP-LX",
        "The zip file is locked; that page says where the password is. Set it as an environment variable.",
    ),
    "jigsaw": Licence(
        "Jigsaw",
        "the competition's rules on Kaggle",
        "https://www.kaggle.com/c/jigsaw-toxic-comment-classification-challenge/rules",
        "Then download train.csv there.",
    ),
}
"""Data sets that must be accepted, by the loaders in `xt.data` that read them."""

_LOG_IN = "Then log in once: run `hf auth login` with a token of your account, or set HF_TOKEN."

_PACKAGED = ("mini", "smollm2")
"""Models that come with a package."""


@checked
def known(source: str) -> _Known | None:
    """Return what is known of one of the paper's models; None for any other.

    Example:
        >>> xt.study.weights.known("ai-forever/mGPT").shape.n_layers
        24
    """
    by_name = {name.lower(): model for name, model in _PAPERS.items()}
    return by_name.get(_RENAMED.get(source, source).lower())


@checked
def licences(loaders: Sequence[str], source: str | None = None) -> tuple[Licence, ...]:
    """Return the licences that must be accepted for a model and for the data that some loaders read.

    Example:
        >>> [licence.of for licence in xt.study.weights.licences(["rtp_lx"], "meta-llama/Meta-Llama-3-8B")]
        ['meta-llama/Meta-Llama-3-8B', 'RTP-LX']
    """
    rows = []
    if source is not None and (model := known(source)) is not None and model.gated:
        rows.append(Licence(source, model.terms, f"https://huggingface.co/{source}", _LOG_IN))
    return (*rows, *(_OF_DATA[loader] for loader in dict.fromkeys(loaders) if loader in _OF_DATA))


@checked
def missing_weights(source: str, revision: str | None = None) -> str | None:
    """Say in a sentence which weights are not on this machine; None if all are there.

    Only the disk is looked at, never the network, so that it answers at once.

    Args:
        source: what `HookedLM.load` takes: a hub name, a folder or a file.
        revision: the revision of a hub name.

    Example:
        >>> xt.study.weights.missing_weights("mini") is None
        True
        >>> xt.study.weights.missing_weights("meta-llama/Meta-Llama-3-8B", "no such revision")
        'The weights of meta-llama/Meta-Llama-3-8B are not on this machine. The download is about 16 GB.'
    """
    if source in _PACKAGED or Path(source).expanduser().exists():
        return None
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(".gguf"):
        return f"There is no folder or file {source}."
    try:
        missing = _lacking_in_cache(source, revision)
    except (OSError, ValueError):
        return f"{source} is neither a folder nor a name on the hub, such as ai-forever/mGPT."
    if not missing:
        return None
    model = known(source)
    size = "" if model is None else f" The download is about {model.shape.weight_bytes / 1e9:.0f} GB."
    return f"The {missing} of {source} {'are' if missing == 'weights' else 'is'} not on this machine.{size}"


def _lacking_in_cache(source: str, revision: str | None) -> str:
    """Return what the hub's cache lacks of a model: its weights or a part of them; nothing if it is complete."""

    def cached(name: str) -> Path | None:
        place = try_to_load_from_cache(source, name, revision=revision)
        return Path(place) if isinstance(place, str) else None

    if cached("config.json") is None and cached("adapter_config.json") is None:
        return "weights"
    if cached("model.safetensors") or cached("adapter_model.safetensors"):
        return ""
    index = cached("model.safetensors.index.json")
    if index is None:
        return "weights"
    content: Any = json.loads(index.read_text("utf-8"))
    return "" if all(cached(shard) for shard in set(content["weight_map"].values())) else "rest of the weights"
