"""How likely a model ends its text at once; the computation is in `models.ending`, which tuning uses too."""

from xlingtox.models.ending import ending_probability as ending_probability

__all__ = ["ending_probability"]
