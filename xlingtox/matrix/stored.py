"""Keep a transfer matrix in one safetensors file: an array for each measure and property, the rest as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlingtox import files
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import ScorerIdentity

_PLAIN = ("sources", "targets", "has_shuffled", "recipe")


def write(path: str | Path, matrix: Mapping[str, Any]) -> None:
    """Write one safetensors file.

    Args:
        matrix: the fields of a transfer matrix, by name. Measures and properties are numbered in the file, because a
            property may have any name.
    """
    arrays = {name: matrix[name] for name in ("perplexity", "meanings")}
    for kind in ("values", "properties"):
        arrays |= {f"{kind}.{number}": array for number, array in enumerate(matrix[kind].values())}
    about = {name: matrix[name] for name in _PLAIN}
    about |= {kind: list(matrix[kind]) for kind in ("values", "properties")}
    about |= {name: dataclasses.asdict(matrix[name]) for name in ("scorer", "model")}
    files.write_tensors(path, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, about)


def fields(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the transfer matrix that a file holds."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {
        **{
            kind: {name: arrays[f"{kind}.{i}"] for i, name in enumerate(about[kind])}
            for kind in ("values", "properties")
        },
        **{name: arrays[name] for name in ("perplexity", "meanings")},
        **{name: about[name] for name in _PLAIN},
        "sources": tuple(about["sources"]),
        "targets": tuple(about["targets"]),
        "scorer": ScorerIdentity(**about["scorer"]),
        "model": Identity.of(about["model"]),
    }
