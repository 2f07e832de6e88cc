"""InProgress: a study in progress, which each stage is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer
from xlingtox.study import plan
from xlingtox.study.models import Models
from xlingtox.study.settings import Materials, Settings


@dataclasses.dataclass
class InProgress:
    """A study in progress: what it works on, and the results of the stages that are done.

    Attributes:
        models: the model before tuning and the tuned one; at most one is in memory, unless a stage asks for both.
        settings: the settings, with a recipe.
        folder: the path of the study's folder.
        keys: the key of each planned stage.
        scorer: the scorer of the materials; if it has no cache, one is kept in the folder.
        second_scorers: the second judges of the materials, with caches too.
        done: the result of each stage that is done.
    """

    models: Models
    materials: Materials
    settings: Settings
    folder: Path
    keys: Mapping[str, str]
    scorer: Scorer
    progress: bool
    second_scorers: tuple[Scorer, ...] = ()
    done: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def sources(self) -> NeuronSet:
        """The neurons that the later stages work on."""
        return NeuronSet.of(self.done["localize"]["actual"])

    @property
    def retrieval_file(self) -> Path:
        """The file with the retrieval of each sentence, from which the reach is predicted."""
        return self.folder / "stages" / f"retrieve.{self.keys['retrieve']}.safetensors"

    @property
    def attribution_file(self) -> Path:
        """The file with the attribution to every neuron and head."""
        return self.folder / "stages" / f"attribution.{self.keys['attribute']}.safetensors"

    @property
    def frontier_file(self) -> Path:
        """The file with the whole comparison of methods; tables for other programs stand beside it."""
        return self.folder / "stages" / f"methods.{self.keys['frontier']}.safetensors"

    @property
    def side_effects_file(self) -> Path:
        """The file with the side effects of tuning, for `xt.SideEffects.load`."""
        return self.folder / "stages" / f"effects.{self.keys['side_effects']}.json"

    @property
    def tuned_folder(self) -> Path:
        """The folder with the tuned checkpoint."""
        return self.folder / "tuned" / self.keys["tune"]

    @property
    def written_folder(self) -> Path:
        """The folder with what both models write for the comparison."""
        model = self.models.base().identity()
        return self.folder / "written" / plan.text_key(model, self.materials, self.settings, self.keys["tune"])
