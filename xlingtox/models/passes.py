"""What hooks see of a forward pass, and the block in which they are set."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """The forward pass that is running, as hooks see it.

    Attributes:
        continuing: whether the pass continues from a cache.
        languages: the languages of the batch's rows; None where they are not known.
        edits: the number of each row's edit, where rows run under different ones; None elsewhere.

    Example:
        >>> ids, mask = lm.encode(["the cat"])
        >>> with lm.hooks(post={0: lambda activations: print(lm.current_pass)}, edit=None):
        ...     logits = lm.logits(ids, mask, languages=["en"])
        Pass(continuing=False, languages=('en',), edits=None)
    """

    continuing: bool
    languages: tuple[str, ...] | None
    edits: Int[Tensor, "row"] | None = None


@dataclass(eq=False)
class HookBlock:
    """A block of `ForwardPasses.hooks`.

    Attributes:
        edit: the name or description of its hooks; None for hooks that only read.
        is_open: False once the block is left. Its hooks do nothing then.
        is_spared: whether the hooks need not fire, because what they would have changed was computed before.
    """

    edit: object
    is_open: bool = True
    is_spared: bool = False
