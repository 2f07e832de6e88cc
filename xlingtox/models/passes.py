"""A forward pass as hooks see it, the block in which hooks are set, and the cache from one pass to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class BatchCache:
    """Everything that is kept of a batch from one forward pass to the next. `ForwardPasses.extend` gives and takes it.

    Attributes:
        key_values: the backend's cache of keys and values.
        languages: the languages of the batch's rows; None where they are not known.
        edits: the number of each row's edit, where rows run under different ones; None elsewhere.
        alongside: the caches of the models that run alongside this one, on the same batch.

    Example:
        >>> ids, mask = lm.encode(["the cat"])
        >>> logits, cache = lm.extend(ids, mask, languages=["en"])
        >>> cache.languages
        ('en',)
    """

    key_values: Any
    languages: tuple[str, ...] | None = None
    edits: Int[Tensor, "row"] | None = None
    alongside: dict[Any, BatchCache] = field(default_factory=dict)

    def of(self, companion: Any) -> BatchCache:
        """Return the cache of `companion`, a model that runs alongside.

        Raises:
            ValueError: that model has not read the earlier tokens of the batch.
        """
        if companion not in self.alongside:
            raise ValueError(
                f"{companion.name} has not read the batch from its start: set the patch before the first pass"
            )
        return self.alongside[companion]
