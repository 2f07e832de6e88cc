"""The two models of a study, of which at most one is in memory, unless both are asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM


@checked
@dataclass(frozen=True)
class ModelSource:
    """A model that is loaded when it is needed, and that may be loaded again.

    Attributes:
        source: what `HookedLM.load` takes: a name, a folder or a file.
        options: its other arguments.

    Example:
        >>> xt.study.models.ModelSource("mini").load()
        HookedLM('mini': 4 layers x 512 neurons, d_model 128)
    """

    source: str | Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> HookedLM:
        """Load the model."""
        return HookedLM.load(self.source, **self.options)


class Models:
    """The model before tuning and the tuned one. To ask for one lets the other go; to ask for both keeps both.

    A model that was given in memory stays there, because its owner holds it.

    Example:
        >>> models = xt.study.models.Models(lm)
        >>> models.base() is lm
        True
    """

    def __init__(self, base: HookedLM | ModelSource) -> None:
        self._given = base
        self._held: dict[str, HookedLM] = {}
        self._tuned: Callable[[], HookedLM] | None = None

    def base(self) -> HookedLM:
        """Return the model before tuning."""
        given = self._given
        return given if isinstance(given, HookedLM) else self._hold("base", given.load)

    def tuned(self) -> HookedLM:
        """Return the tuned model."""
        assert self._tuned is not None, "the stage in which the model is tuned comes first"
        return self._hold("tuned", self._tuned)

    def both(self) -> tuple[HookedLM, HookedLM]:
        """Return the model before tuning and the tuned one, which stay in memory until one of them is asked for."""
        assert self._tuned is not None, "the stage in which the model is tuned comes first"
        given = self._given
        base = given if isinstance(given, HookedLM) else self._held.get("base") or given.load()
        tuned = self._held.get("tuned") or self._tuned()
        self._held = {"tuned": tuned} if base is given else {"base": base, "tuned": tuned}
        return base, tuned

    def to_tune(self) -> HookedLM | str | Path:
        """Return what `tune` shall tune: a name, which it loads for itself, wherever that says it all."""
        given = self._given
        if isinstance(given, HookedLM):
            return given
        if given.options:
            return self.base()
        self.release()
        return given.source

    def tuned_in(self, folder: Path) -> None:
        """Say where the tuned model lies. It is loaded as the model before tuning is: same dtype, same device."""
        lm = self.base()
        dtype, device, chat = lm.dtype, lm.device, lm.chat or False
        options = {} if isinstance(self._given, HookedLM) else dict(self._given.options)
        placed = {"device_map": options["device_map"]} if "device_map" in options else {"device": device}
        del lm
        self._tuned = lambda: HookedLM.load(folder, dtype=dtype, chat=chat, **placed)

    def release(self) -> None:
        """Let go of the model that was loaded."""
        self._held = {}
        # Modules that share weights are freed by a collection only.
        gc.collect()

    def _hold(self, name: str, load: Callable[[], HookedLM]) -> HookedLM:
        if list(self._held) != [name]:
            # What is loaded already is kept, and the other model is let go before one is loaded.
            self._held = {kept: lm for kept, lm in self._held.items() if kept == name}
            gc.collect()
            self._held = self._held or {name: load()}
        return self._held[name]
