"""Make a model less toxic: published methods as values, each fitted on labelled sentences and turned by one dial.

`fit` returns a fitted method, and `at(strength)` the edit or the model of that strength. `xt.frontier` compares methods
where they cost the same fluency.
"""

from xlingtox.methods.attributed import AttributedOffset
from xlingtox.methods.aura import AurA, Damping
from xlingtox.methods.examples import Examples
from xlingtox.methods.heads import HeadShift
from xlingtox.methods.lin_act import LinAcT
from xlingtox.methods.lin_eas import LinEAS
from xlingtox.methods.means import MeanDifference, MeanProjected
from xlingtox.methods.method import Dial, Edited, Fitted, Method
from xlingtox.methods.prefix import Prefix
from xlingtox.methods.principal import Principal, PrincipalProjected
from xlingtox.methods.random_direction import RandomDirection
from xlingtox.methods.random_neurons import RandomNeurons
from xlingtox.methods.sources import Ablation, SourcesOffset
from xlingtox.methods.tuned import Tuned

__all__ = [
    "Ablation",
    "AttributedOffset",
    "AurA",
    "Damping",
    "Dial",
    "Edited",
    "Examples",
    "Fitted",
    "HeadShift",
    "LinAcT",
    "LinEAS",
    "MeanDifference",
    "MeanProjected",
    "Method",
    "Prefix",
    "Principal",
    "PrincipalProjected",
    "RandomDirection",
    "RandomNeurons",
    "SourcesOffset",
    "Tuned",
]
