"""Sites: the kinds of places in a model whose activations can be edited. A place is a site of one layer.

All that tells one site from another is here, in `places` and in the backends' methods `on`, so edits are written once
for all sites.
"""

from __future__ import annotations

from typing import Literal, get_args

Site = Literal[
    "neurons",
    "heads",
    "pre_activation",
    "mlp_output",
    "residual",
    "ln1",
    "ln1_post",
    "ln2",
    "ln2_post",
    "ln_final",
]
"""A kind of place in every block, and so what a pair `(layer, index)` names.

- "neurons": the post-activations of an MLP, which its down-projection reads.
- "heads": the outputs of attention's heads, which its output projection reads.
- "pre_activation": the hidden layer of an MLP before its activation; in a gated MLP, the gate.
- "mlp_output": the output of the down-projection.
- "residual": the residual stream after a block.
- "ln1", "ln1_post", "ln2", "ln2_post": what comes out of the norm before attention, the one after it, and the norms
  before and after the MLP. Few families have all of them. The names are those of TransformerLens.
- "ln_final": what comes out of the final norm. Its layer is the number of the last block.
"""

Place = tuple[Site, int]
"""A site and a layer. Layers are blocks, from 0 on, for every site."""

SITES: tuple[Site, ...] = get_args(Site)
"""All sites, for calls that take any."""

NORMS: tuple[Site, ...] = ("ln1", "ln1_post", "ln2", "ln2_post")
"""The sites behind the norms of a block: before and after attention, before and after the MLP."""

_DIMENSIONS: tuple[Site, ...] = ("mlp_output", "residual", "ln_final", *NORMS)

UNITS: dict[Site, str] = {
    "neurons": "neuron",
    "heads": "head",
    "pre_activation": "pre-activation",
    **dict.fromkeys(_DIMENSIONS, "dimension"),
}
"""The word for one unit of a site."""

UNITS_OF: dict[Site, str] = {
    "neurons": "neurons",
    "heads": "heads",
    "pre_activation": "pre-activations",
    "mlp_output": "dimensions of the MLP's output",
    "residual": "dimensions of the residual stream",
    **{site: f"dimensions behind {site}" for site in (*NORMS, "ln_final")},
}
"""The words for several units of a site."""
