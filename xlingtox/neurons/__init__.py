"""Find the neurons in which a model keeps its toxicity.

`Probe` finds a direction in the residual stream that tells toxic from neutral text. `localize` ranks the neurons of all
MLPs against it, which gives candidates. `evidence` says whether these are more than chance would give.
`collect_activations` measures which of them fire on toxic prompts: these are the sources. `read_tokens` shows the same
neurons token by token.
"""

from xlingtox.neurons import localize
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.evidence import Evidence, evidence
from xlingtox.neurons.neuron_set import Neuron, NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.neurons.themes import themes
from xlingtox.neurons.token_activations import TokenActivations, read_tokens, top_tokens

__all__ = [
    "Activations",
    "Evidence",
    "Neuron",
    "NeuronSet",
    "Probe",
    "TokenActivations",
    "collect_activations",
    "evidence",
    "localize",
    "read_tokens",
    "themes",
    "top_tokens",
]
