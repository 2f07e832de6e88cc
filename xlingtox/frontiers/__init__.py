"""Compare methods where they cost the same fluency."""

from xlingtox.frontiers.frontier import frontier
from xlingtox.frontiers.point import Curve, Point
from xlingtox.frontiers.result import Frontier

__all__ = ["Curve", "Frontier", "Point", "frontier"]
