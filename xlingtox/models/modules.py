"""The modules of a plain Hugging Face model that are hooked, by layer and under one name in all families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class PlainModules:
    """The modules of a plain model that take part in what neurons and heads do.

    Attributes:
        blocks: the transformer blocks.
        downs: the down-projections of the MLPs.
        outs: the output projections of attention, which read the outputs of the heads; empty where none were found.
        ins: the projections whose outputs are the MLPs' pre-activations: the gate's in a gated MLP.
        are_joint: whether these also hold the up-projection, so that only the first half of their outputs counts.
        norms: the norms, by layer and by their place in `sites.NORMS`. The final norm is at (`n_layers`, 0).
        unembed: the unembedding; None where it was not looked up.
        ups: the up-projections of gated MLPs; empty where there is no gate, or where `ins` hold them too.

    Example:
        >>> modules = lm.plain_modules()
        >>> len(modules.downs), sorted(modules.norms)[:3]
        (4, [(0, 0), (0, 2), (1, 0)])
    """

    blocks: Sequence[nn.Module] = ()
    downs: Sequence[nn.Module] = ()
    outs: Sequence[nn.Module] = ()
    ins: Sequence[nn.Module] = ()
    are_joint: bool = False
    norms: Mapping[tuple[int, int], nn.Module] = field(default_factory=dict)
    unembed: nn.Module | None = None
    ups: Sequence[nn.Module] = ()
