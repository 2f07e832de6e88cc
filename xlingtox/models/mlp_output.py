"""How a block passes on what its MLP writes: as it is, times a constant, or through a norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.models.backend import Hook
from xlingtox.models.forward import ForwardPasses

_STEPS = (0.0, 1.0, 32.0)
"""Far enough apart that a norm, which bounds what it passes on, shows."""


@torch.no_grad()
def measure_mlp_multipliers(
    running: ForwardPasses, written: Callable[[int, Float[Tensor, "one d_mlp"]], Float[Tensor, "one d_model"]]
) -> tuple[float | None, ...]:
    """Measure, for each layer, the constant by which the block multiplies its MLP's output; None where none fits.

    Most families add the output as it is (1.0), some times a constant (Granite's `residual_multiplier`), some through a
    norm (Gemma 2). A single pass reads three rows of the same tokens, in which the neurons are moved by 0, 1 and 32
    times one pattern. The change of a block's output is compared with what the down-projection makes of the pattern.
    Behind each block the rows are made equal again, so that a layer's change does not reach the next.

    Args:
        written: what the down-projection of a layer writes for activations, without its bias.
    """
    pushes: dict[int, Tensor] = {}
    changes: dict[int, Tensor] = {}

    def moving(layer: int) -> Hook:
        def moved(value: Tensor) -> Tensor:
            signs = torch.randint(0, 2, (1, value.shape[-1]), generator=torch.Generator().manual_seed(layer)) * 2 - 1
            pattern = signs.to(value) * (float(value.float().square().mean().sqrt()) or 1.0)
            pushes[layer] = written(layer, pattern).float()
            return value + torch.tensor(_STEPS).to(value)[:, None, None] * pattern

        return moved

    def comparing(layer: int) -> Hook:
        def compared(state: Tensor) -> Tensor:
            changes[layer] = (state[1:] - state[:1]).float()
            return state[:1].repeat(len(state), 1, 1)

        return compared

    layers = range(running.n_layers)
    ids = torch.tensor([[0, 1, 2]]).repeat(len(_STEPS), 1)
    with running.hooks(
        post={layer: moving(layer) for layer in layers}, residual={layer + 1: comparing(layer) for layer in layers}
    ):
        running.logits(ids, torch.ones_like(ids, dtype=torch.bool), last_only=True)
    return tuple(_constant(changes[layer], pushes[layer].to(changes[layer]), running.exact) for layer in layers)


def _constant(
    changes: Float[Tensor, "step pos d_model"], push: Float[Tensor, "one d_model"], exact: bool
) -> float | None:
    """The one number that takes `push` to its share in the changes of both steps, or None."""
    if not bool(push.any()) or not bool(changes.isfinite().all()):
        return 1.0
    sizes = push.abs()[0]
    clear = sizes > 0.1 * sizes.median()
    near, far = (changes[i][:, clear] / (step * push[:, clear]) for i, step in enumerate(_STEPS[1:]))
    # Medians: 16 bits round the few coordinates in which the stream is huge.
    constant = float(far.median())
    misfit = max(float((ratio - constant).abs().median()) for ratio in (near, far))
    if not misfit <= (1e-2 if exact else 0.25) * abs(constant):
        return None
    return 1.0 if abs(constant - 1) < (1e-4 if exact else 1e-2) else constant
