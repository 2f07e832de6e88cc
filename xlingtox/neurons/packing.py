"""Sets of neurons as tensors and metadata, for the files of results that are about some neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.verdicts import Verdict


def packed(neurons: NeuronSet, suffix: str = "") -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the tensors of a set for a safetensors file, and what belongs into its metadata.

    Args:
        suffix: an end of all names, for files that hold several sets.
    """
    tensors = {
        f"neurons{suffix}": torch.tensor(neurons.neurons, dtype=torch.int64).reshape(-1, 2),
        f"scores{suffix}": torch.tensor(neurons.scores, dtype=torch.float64),
    }
    if neurons.weights:
        tensors[f"weights{suffix}"] = torch.tensor(neurons.weights, dtype=torch.float64)
    about = dict[str, object]()
    if neurons.evidence:
        about["evidence"] = [asdict(verdict) for verdict in neurons.evidence]
    if neurons.site != "neurons":
        about["site"] = neurons.site
    return tensors, about


def unpacked(tensors: Mapping[str, Tensor], about: Mapping[str, Any], suffix: str = "") -> NeuronSet:
    """Return the set that `packed` made tensors and metadata of."""
    # Earlier versions wrote the neurons of activations to the metadata.
    neurons, scores = (
        tensors[name + suffix].tolist() if name + suffix in tensors else about[name] for name in ("neurons", "scores")
    )
    weights = tensors[f"weights{suffix}"].tolist() if f"weights{suffix}" in tensors else ()
    evidence = tuple(Verdict(**verdict) for verdict in about.get("evidence", ()))
    site = about.get("site", "neurons")
    return replace(NeuronSet.of(neurons, scores=scores, site=site), weights=tuple(weights), evidence=evidence)
