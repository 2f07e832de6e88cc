"""Experts: how well a single unit's activation tells toxic sentences from others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from xlingtox.models import places as sizes
from xlingtox.models.hooked import HookedLM
from xlingtox.models.pooled import read_pooled
from xlingtox.models.sites import Place
from xlingtox.neurons.areas import areas
from xlingtox.progress import bar

_MOST_BYTES = 2**30
"""The most bytes of activations that are held at once. Places for which there is no room are read in a later pass."""


def expertise(
    lm: HookedLM,
    texts: Sequence[str],
    labels: Sequence[int],
    places: Sequence[Place],
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[Place, Float[np.ndarray, "column"]]:
    """Return the area under the ROC curve of each column of some places, where its highest activation judges a text.

    Args:
        labels: 1 for toxic texts, 0 for others; both occur.

    Raises:
        ValueError: a text has no tokens, the model has no such place, or it stands under an edit.
    """
    lm.check_unedited("a set of experts does not show")
    toxic, of_places = np.array(labels, dtype=bool), dict[Place, np.ndarray]()
    with bar("units as judges", total=len(places), unit="layer", progress=progress) as shown:
        for group in _groups(lm, len(texts), places):
            highest = read_pooled(lm, texts, group, pool="max", batch_size=batch_size, progress=False)
            for place, judgements in highest.items():
                of_places[place] = areas(judgements.numpy(), toxic)
                shown.update()
    return of_places


def _groups(lm: HookedLM, n_texts: int, places: Sequence[Place]) -> list[list[Place]]:
    """Split places into groups whose pooled activations fit into the memory that they may take."""
    groups: list[list[Place]] = [[]]
    n_bytes = 0
    for place in places:
        size = 4 * n_texts * sizes.n_columns(lm, place)
        if groups[-1] and n_bytes + size > _MOST_BYTES:
            groups.append([])
            n_bytes = 0
        groups[-1].append(place)
        n_bytes += size
    return groups
