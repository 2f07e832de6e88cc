"""LinAcT: carry activations from toxic to clean text by linear optimal transport (Rodriguez et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import read_pooled
from xlingtox.methods.transport import Maps, to_fit
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place, Site
from xlingtox.progress import bar


@checked
@dataclass(frozen=True)
class LinAcT(Method):
    """Map each unit's activation by `gain * x + shift`, so that toxic text gets the activations of clean text.

    In one dimension, optimal transport pairs the sorted values of both sides: the lowest with the lowest, the highest
    with the highest. The map is the least-squares line through these pairs. A value is a unit's mean over the tokens of
    a text. The strength goes from the unit's own value (0) to the mapped one (1).

    Places are fitted one after the other: each sees what the maps before it have changed, as the authors advise. We map
    every value, and not only those in the range of the fit, so that the maps are affine and can be baked.

    Attributes:
        sites: the sites that are mapped: behind each norm before attention and before the MLP. A family that has only
            one of these is mapped there.
        n_texts: the most sentences of each kind; the paper has 32 to 512. They are drawn by chance.
        incremental: whether places are fitted one after the other. If not, all are fitted to the unedited model, in a
            single pass.

    Example:
        >>> fitted = xt.methods.LinAcT(n_texts=32).fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> with fitted.at(0.5).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    sites: tuple[Site, ...] = ("ln1", "ln2")
    n_texts: int = 128
    incremental: bool = True
    name: str = field(default="Lin-AcT", kw_only=True)
    citation: str = field(default="Rodriguez et al. 2025", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        """Fit the map of each unit.

        Raises:
            ValueError: as in `Method.fit`. There are fewer than two sentences of a kind, the model has none of the
                sites, or it is under an edit.
        """
        places, toxic, clean = to_fit(lm, labelled, self.sites, n_texts=self.n_texts, seed=seed)
        targets = read_pooled(lm, clean, places, pool="mean", progress=progress)
        gains, shifts = dict[Place, Tensor](), dict[Place, Tensor]()
        groups = [[place] for place in places] if self.incremental else [places]
        with bar("fitting maps", total=len(places), unit="place", progress=progress) as shown:
            for group in groups:
                # The model runs under the maps of all earlier places.
                with Maps(gains, shifts).on(lm):
                    sources = read_pooled(lm, toxic, group, pool="mean", progress=False)
                for place in group:
                    gains[place], shifts[place] = line(sources[place], targets[place])
                shown.update(len(group))
        maps = Maps(gains, shifts)
        return Fitted.of(self, lambda strength: maps.edit(lm, strength))


def line(
    sources: Float[Tensor, "text column"], targets: Float[Tensor, "text column"]
) -> tuple[Float[Tensor, "column"], Float[Tensor, "column"]]:
    """Return the gain and the shift of each column: the least-squares line from sorted sources to sorted targets.

    A column that is constant on the sources is only shifted.
    """
    first, second = sources.double().sort(0).values, targets.double().sort(0).values
    centre, aim = first.mean(0), second.mean(0)
    first, second = first - centre, second - aim
    spread = (first**2).sum(0)
    # Rounding makes a constant column vary a little.
    varies = spread > torch.finfo(torch.float32).eps ** 2 * len(first) * centre**2
    gain = torch.where(varies, (first * second).sum(0) / spread, 1.0)
    return gain, aim - gain * centre
