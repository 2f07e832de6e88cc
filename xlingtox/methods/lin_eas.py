"""LinEAS: maps of all layers, trained together so that toxic text gets the activations of clean text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.transport import Maps, to_fit
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place, Site
from xlingtox.progress import bar

Activations = Mapping[Place, Float[Tensor, "text column"]]
"""What leaves each place, averaged over the tokens of each text."""

_MOST_TOKENS = 128
"""The most tokens that are read of a sentence, as in the authors' code for activations."""


@checked
@dataclass(frozen=True)
class LinEAS(Method):
    """Map each unit's activation by `gain * x + shift`, with the maps of all layers trained together.

    Lin-AcT fits each map by itself. Here one loss is lowered by gradient descent through the model, so that each map
    takes into account what it does to all later layers. The loss is a sum over places: the mean over their units of the
    squared one-dimensional Wasserstein distance between edited toxic text and clean text. A value is a unit's mean over
    the tokens of a text.

    Penalties can keep maps sparse (sparse group lasso). One takes out single units, the other whole places: their gain
    stays 1, and their shift 0. Steps are those of proximal gradient descent on all texts. A step that raises the
    objective is taken back, and the learning rate is halved.

    Attributes:
        sites: the sites that are mapped: behind each norm before attention and before the MLP.
        n_texts: the most sentences of each kind, drawn by chance (32 in the paper).
        n_steps: the number of steps.
        learning_rate: the first learning rate.
        unit_penalty: the weight of the mean over units of `|gain - 1|` and of `|shift|`, for each place.
        place_penalty: the weight of the root of the mean over units of their squares, for each place.

    Example:
        >>> method = xt.methods.LinEAS(n_texts=8, n_steps=3)
        >>> fitted = method.fit(lm, xt.mini.labelled("en", n=50), progress=False)
        >>> with fitted.at(0.5).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    sites: tuple[Site, ...] = ("ln1", "ln2")
    n_texts: int = 32
    n_steps: int = 60
    learning_rate: float = 0.5
    unit_penalty: float = 0.0
    place_penalty: float = 0.0
    name: str = field(default="LinEAS", kw_only=True)
    citation: str = field(default="Rodriguez et al. 2025 (LinEAS)", kw_only=True)

    def __post_init__(self) -> None:
        if not (self.n_steps >= 1 and 0 < self.learning_rate < float("inf")):
            raise ValueError(
                f"{self.n_steps} steps at a learning rate of {self.learning_rate:g}: expected at least one step and a "
                "rate above 0"
            )
        if not (0 <= self.unit_penalty < float("inf") and 0 <= self.place_penalty < float("inf")):
            raise ValueError(f"penalties are {self.unit_penalty:g} and {self.place_penalty:g}: expected 0 or more")

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        """Train the maps.

        Raises:
            ValueError: as in `Method.fit`. There are fewer than two sentences of a kind, the model has none of the
                sites, or it is under an edit.
        """
        places, toxic, clean = to_fit(lm, labelled, self.sites, n_texts=self.n_texts, seed=seed)
        targets = mean_activations(lm, clean, dict.fromkeys(places))
        maps, _ = self.trained(lm, toxic, targets, progress=progress)
        return Fitted.of(self, lambda strength: maps.edit(lm, strength))

    @checked
    def trained(
        self, lm: HookedLM, toxic: Sequence[str], targets: Activations, *, progress: bool
    ) -> tuple[Maps, list[float]]:
        """Return the maps after all steps, and the objective before the first step and after each one.

        Args:
            targets: the activations of the clean sentences, as many as there are toxic ones.
        """
        gains = {place: torch.ones_like(of_place[0]) for place, of_place in targets.items()}
        shifts = {place: torch.zeros_like(of_place[0]) for place, of_place in targets.items()}
        objective, slopes = self._objective(lm, toxic, targets, gains, shifts)
        history, rate = [objective], self.learning_rate
        with bar("training maps", total=self.n_steps, unit="step", progress=progress) as shown:
            for _ in range(self.n_steps):
                new_gains, new_shifts = (
                    {
                        place: neutral + self._shrunk(number - rate * slope[place] - neutral, rate)
                        for place, number in numbers.items()
                    }
                    for numbers, slope, neutral in ((gains, slopes[0], 1.0), (shifts, slopes[1], 0.0))
                )
                reached, new_slopes = self._objective(lm, toxic, targets, new_gains, new_shifts)
                if reached <= objective:
                    gains, shifts, objective, slopes = new_gains, new_shifts, reached, new_slopes
                else:
                    rate /= 2
                history.append(objective)
                shown.update(1)
        on_cpu = ({place: number.cpu() for place, number in numbers.items()} for numbers in (gains, shifts))
        return Maps(*on_cpu), history

    def _objective(
        self,
        lm: HookedLM,
        toxic: Sequence[str],
        targets: Activations,
        gains: Mapping[Place, Tensor],
        shifts: Mapping[Place, Tensor],
    ) -> tuple[float, tuple[dict[Place, Tensor], dict[Place, Tensor]]]:
        """Return the loss with its penalties, and the loss's slopes in the gains and in the shifts."""
        maps = {place: (gains[place].requires_grad_(), shifts[place].requires_grad_()) for place in targets}
        with torch.enable_grad():
            loss = distance(mean_activations(lm, toxic, maps), targets)
        slopes = torch.autograd.grad(loss, [number for map_ in maps.values() for number in map_])
        penalty = 0.0
        for gain, shift in maps.values():
            gain.requires_grad_(False)
            shift.requires_grad_(False)
            for change in (gain - 1, shift):
                penalty += self.unit_penalty * float(change.abs().mean())
                penalty += self.place_penalty * float(change.square().mean().sqrt())
        places = list(maps)
        return float(loss.detach()) + penalty, (
            dict(zip(places, slopes[::2], strict=True)),
            dict(zip(places, slopes[1::2], strict=True)),
        )

    def _shrunk(self, change: Float[Tensor, "column"], rate: float) -> Float[Tensor, "column"]:
        """Return the proximal step of both penalties: towards 0 unit by unit, then all of the place together."""
        size = len(change)
        change = torch.nn.functional.softshrink(change, rate * self.unit_penalty / size)
        norm = float(change.norm())
        return change * max(0.0, 1 - rate * self.place_penalty / size**0.5 / norm) if norm else change


def mean_activations(
    lm: HookedLM, texts: Sequence[str], maps: Mapping[Place, tuple[Tensor, Tensor] | None]
) -> dict[Place, Float[Tensor, "text column"]]:
    """Return what leaves each place, averaged over the tokens of each text, in 32 bits or more, with a graph.

    Args:
        maps: the gain and the shift of each place, which act while the texts are read; None where nothing acts.
    """
    ids, mask = lm.encode(texts, max_length=min(_MOST_TOKENS, lm.n_positions))
    weight = (mask.double() / mask.sum(1, keepdim=True)).unsqueeze(1)
    means: dict[Place, Tensor] = {}

    def hook_of(place: Place, map_: tuple[Tensor, Tensor] | None) -> Hook:
        def run(value: Tensor) -> Tensor | None:
            mapped = value.to(torch.promote_types(value.dtype, torch.float32))
            mapped = mapped if map_ is None else map_[0] * mapped + map_[1]
            means[place] = (weight.to(mapped) @ mapped).squeeze(1)
            return None if map_ is None else mapped.to(value)

        return run

    hooks = {place: hook_of(place, map_) for place, map_ in maps.items()}
    with lm.differentiable(), lm.hooks(at=hooks, edit="maps in training"):
        lm.logits(ids, mask, last=1)
    return {place: means[place] for place in maps}


def distance(moved: Activations, targets: Activations) -> Float[Tensor, ""]:
    """Return the sum over places of the mean over columns of the squared Wasserstein distance in one dimension.

    Both sides have as many texts, so the distance pairs their sorted values.
    """
    parts = [(values.sort(0).values - targets[place].sort(0).values).square().mean() for place, values in moved.items()]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()
