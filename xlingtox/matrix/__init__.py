"""Find out which language to tune on: tune on each source language, and measure in each target language."""

from xlingtox.matrix.matrix import transfer_matrix
from xlingtox.matrix.result import TransferMatrix

__all__ = ["TransferMatrix", "transfer_matrix"]
