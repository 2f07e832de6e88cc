"""The direction of a method, and the block behind which it acts: chosen by its effect on held-out sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation.text_losses import Row, text_losses, text_losses_under
from xlingtox.methods.examples import Examples
from xlingtox.methods.reading import Pool
from xlingtox.methods.states import States, held_out_rows, read_states
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place

DirectionOf = Callable[[States], Float[np.ndarray, "column"]]
"""A function from the states at one place to a direction there, from toxic towards clean."""

Numbers = tuple[float, ...]
"""A direction as edits hold it."""

EditOf = Callable[[Numbers, int, float], Intervention]
"""A function from a direction, a block's number and a strength to an edit, such as `Steer`."""

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The strengths that are tried at each block."""

LARGEST_COST = math.log(1.1)
"""The most nats a token by which clean sentences may become less likely: their perplexity rises by 10 %."""

MOST_BLOCKS = 6
"""In deeper models, so many blocks are tried, evenly spaced."""

MOST_TEXTS = 10
"""The most held-out sentences of a kind that a block is tried on."""


def direction_at(
    lm: HookedLM,
    labelled: Labelled | PreferencePairs,
    direction_of: DirectionOf,
    edit_of: EditOf,
    *,
    layer: int | None,
    tokens: Pool,
    seed: int,
    progress: bool,
) -> tuple[Numbers, int]:
    """Return a direction in the residual stream, fitted on all sentences, and the block behind which it acts.

    Args:
        layer: the block's number. None: directions are fitted on four fifths of the sentences, and the other fifth
            chooses among blocks by `best_layer`.

    Raises:
        ValueError: the model has no such block, or the table is not as `Examples.of` needs it.
    """
    if layer is not None and not 0 <= layer < lm.n_layers:
        raise ValueError(f"layer is {layer}: {lm.name} has blocks 0 to {lm.n_layers - 1}")
    examples = Examples.of(labelled)
    blocks = spaced_blocks(lm.n_layers) if layer is None else [layer]
    places: list[Place] = [("residual", block) for block in blocks]
    read = read_states(lm, examples, places, tokens=tokens, progress=progress)
    states = {block: read["residual", block] for block in blocks}
    if layer is None:
        directions = {block: _numbers(direction_of(of_block.split(seed=seed)[0])) for block, of_block in states.items()}
        layer = best_layer(lm, directions, edit_of, _held_out(examples, seed=seed), progress=progress)
    return _numbers(direction_of(states[layer])), layer


def spaced_blocks(n_layers: int) -> list[int]:
    """Return the numbers of the blocks that are tried, in rising order.

    Example:
        >>> from xlingtox.methods.layers import spaced_blocks
        >>> spaced_blocks(4), spaced_blocks(30)
        ([0, 1, 2, 3], [0, 6, 12, 17, 23, 29])
    """
    return [round(block) for block in np.linspace(0, n_layers - 1, min(n_layers, MOST_BLOCKS))]


def best_layer(
    lm: HookedLM,
    directions: Mapping[int, Numbers],
    edit_of: EditOf,
    held_out: Examples,
    *,
    progress: bool,
) -> int:
    """Return the block at which an edit sets toxic and clean sentences apart most, at the same cost of fluency.

    An edit's gain is how much less likely it makes the toxic sentences, in nats a token, beyond what it does to the
    clean ones. At each block the best strength counts, among those that raise the perplexity of the clean sentences by
    at most 10 %. Where no strength helps, the gain is 0. Of equally good blocks the middle one is taken.

    Args:
        directions: block to the direction there, in rising order, fitted on other sentences.
        held_out: the sentences to choose on.
    """
    edits = [edit_of(direction, block, strength) for block, direction in directions.items() for strength in STRENGTHS]
    sides = [_rows(lm, side) for side in (held_out.toxic, held_out.clean)]
    rows = [row for side in sides for row in side]
    n_toxic = len(sides[0])

    def nats_a_token(losses: Float[np.ndarray, "row"]) -> Float[np.ndarray, "kind"]:
        """Return the mean loss of the tokens of toxic and of clean sentences."""
        sums = [losses[:n_toxic].sum(), losses[n_toxic:].sum()]
        return np.array(sums) / [sum(len(row.ids) - 1 for row in side) for side in sides]

    unedited = nats_a_token(text_losses(lm, rows, None, progress=False))
    under = text_losses_under(lm, edits, rows, progress=progress)
    toxic, clean = np.array([nats_a_token(losses) - unedited for losses in under]).T.reshape(2, len(directions), -1)
    gains = np.where(clean <= LARGEST_COST, toxic - clean, 0.0).max(1).clip(min=0.0)
    equally_good = np.flatnonzero(gains == gains.max())
    return list(directions)[equally_good[len(equally_good) // 2]]


def _held_out(examples: Examples, *, seed: int) -> Examples:
    """Return the first of the held-out sentences."""
    rows = held_out_rows(len(examples.toxic), len(examples.clean), paired=examples.paired, seed=seed)
    toxic, clean = (
        tuple(side[row] for row in of_side[:MOST_TEXTS])
        for side, of_side in zip((examples.toxic, examples.clean), rows, strict=True)
    )
    return Examples(toxic, clean, examples.paired)


def _rows(lm: HookedLM, texts: Sequence[str]) -> list[Row]:
    """Return the tokens of texts; raise ValueError if no text has two, so that none is predicted."""
    rows = [Row("", ids[: lm.n_positions], 1) for ids in lm.token_ids(texts)]
    if not (rows := [row for row in rows if len(row.ids) > 1]):
        raise ValueError(f"no held-out sentence has two tokens, such as {texts[0]!r}: give longer ones, or layer=")
    return rows


def _numbers(direction: Float[np.ndarray, "column"]) -> Numbers:
    return tuple(direction.tolist())
