"""Figures: pure functions from results to plotly figures and token views, returned and never shown.

Figures are made for a light page; `figure.update_layout(template=style(dark=True))` makes one for a dark page.
"""

from xlingtox.figures.attribution import attribution, attribution_by_language, shared_units
from xlingtox.figures.doses import dose_response
from xlingtox.figures.dual_multilinguality import dual_multilinguality
from xlingtox.figures.frontier import frontier
from xlingtox.figures.judges import blind_spots, validation
from xlingtox.figures.matrix import transfer_matrix
from xlingtox.figures.neurons import activation_map, neuron_activations, promoted, sources
from xlingtox.figures.pairs import activations, fluency, toxicity
from xlingtox.figures.patching import patch_effect
from xlingtox.figures.plot import plot
from xlingtox.figures.roc import probe, roc
from xlingtox.figures.set_changes import same_text
from xlingtox.figures.several import beside, models, seeds
from xlingtox.figures.side_effects import side_effects
from xlingtox.figures.splitting import alignment_split
from xlingtox.figures.spread import fluency_spread
from xlingtox.figures.style import AFTER, BEFORE, style
from xlingtox.figures.tokens import TokenView, token_activations, top_tokens
from xlingtox.figures.transfer import retrieval_by_layer, transfer
from xlingtox.figures.tuning import training, weight_drift
from xlingtox.html.pages import FONTS

__all__ = [
    "AFTER",
    "BEFORE",
    "FONTS",
    "TokenView",
    "activation_map",
    "activations",
    "alignment_split",
    "attribution",
    "attribution_by_language",
    "beside",
    "blind_spots",
    "dose_response",
    "dual_multilinguality",
    "fluency",
    "fluency_spread",
    "frontier",
    "models",
    "neuron_activations",
    "patch_effect",
    "plot",
    "probe",
    "promoted",
    "retrieval_by_layer",
    "roc",
    "same_text",
    "seeds",
    "shared_units",
    "side_effects",
    "sources",
    "style",
    "token_activations",
    "top_tokens",
    "toxicity",
    "training",
    "transfer",
    "transfer_matrix",
    "validation",
    "weight_drift",
]
