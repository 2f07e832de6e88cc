"""Measure how blocks add their MLP's output to the residual stream: as it is, times a constant, or through a norm.

It is measured because each family writes it in another place of its code or configuration.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.models.backend import Hook
from xlingtox.models.forward import ForwardPasses

_STEPS = (0.0, 1.0, 32.0)
"""Factors of the pattern that is added to the neurons. A norm bounds its output; 1 and 32 tell it from a constant."""


@torch.no_grad()
def measure_mlp_multipliers(
    lm: ForwardPasses, project_down: Callable[[int, Float[Tensor, "one d_mlp"]], Float[Tensor, "one d_model"]]
) -> tuple[float | None, ...]:
    """Measure, for each layer, the constant by which the block multiplies its MLP's output; None where none fits.

    Most families add the output as it is (1.0). Some multiply it by a constant (Granite's `residual_multiplier`), some
    send it through a norm (Gemma 2).

    A single pass reads three rows of the same tokens. In these, the neurons are moved by 0, 1 and 32 times one pattern.
    The change of a block's output is compared with the down-projection's output for the pattern. Behind each block the
    rows are made equal again, so that a layer's change does not reach the next.

    Args:
        project_down: returns the output of a layer's down-projection for activations, without its bias.
    """
    pushes: dict[int, Tensor] = {}
    changes: dict[int, Tensor] = {}

    def mover(layer: int) -> Hook:
        def move(value: Tensor) -> Tensor:
            signs = torch.randint(0, 2, (1, value.shape[-1]), generator=torch.Generator().manual_seed(layer)) * 2 - 1
            pattern = signs.to(value) * (float(value.float().square().mean().sqrt()) or 1.0)
            pushes[layer] = project_down(layer, pattern).float()
            return value + torch.tensor(_STEPS).to(value)[:, None, None] * pattern

        return move

    def recorder(layer: int) -> Hook:
        def record(state: Tensor) -> Tensor:
            changes[layer] = (state[1:] - state[:1]).float()
            return state[:1].repeat(len(state), 1, 1)

        return record

    layers = range(lm.n_layers)
    ids = torch.tensor([[0, 1, 2]]).repeat(len(_STEPS), 1)
    with lm.hooks(
        post={layer: mover(layer) for layer in layers}, residual={layer + 1: recorder(layer) for layer in layers}
    ):
        lm.logits(ids, torch.ones_like(ids, dtype=torch.bool), last=1)
    return tuple(_constant(changes[layer], pushes[layer].to(changes[layer]), lm.exact) for layer in layers)


def _constant(
    changes: Float[Tensor, "step pos d_model"], push: Float[Tensor, "one d_model"], exact: bool
) -> float | None:
    """Return the one constant that explains the changes of both steps as multiples of `push`, or None.

    Args:
        changes: the changes of the block's output, for the patterns of factors 1 and 32.
        push: the down-projection's output for the pattern.
        exact: whether weights are held in 32 bits, where a constant must fit closely.
    """
    if not bool(push.any()) or not bool(changes.isfinite().all()):
        return 1.0
    sizes = push.abs()[0]
    large = sizes > 0.1 * sizes.median()
    near, far = (changes[i][:, large] / (step * push[:, large]) for i, step in enumerate(_STEPS[1:]))
    # Medians, because in 16 bits the few coordinates in which the residual stream is huge are rounded coarsely.
    constant = float(far.median())
    misfit = max(float((ratio - constant).abs().median()) for ratio in (near, far))
    if not misfit <= (1e-2 if exact else 0.25) * abs(constant):
        return None
    return 1.0 if abs(constant - 1) < (1e-4 if exact else 1e-2) else constant
