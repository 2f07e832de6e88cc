"""Find the language to tune on: tune on each source language, and evaluate in each target language."""

from xlingtox.matrix.result import TransferMatrix

__all__ = ["TransferMatrix"]
