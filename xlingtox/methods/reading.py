"""How methods read activations of labelled sentences: pooled over the tokens of each text."""

from xlingtox.models.pooled import Pool, read_pooled

__all__ = ["Pool", "read_pooled"]
