"""How a run uses the processes that a launcher started: the main one tunes alone, or all tune sharded weights (FSDP).

Several processes that each hold all weights would gain little and give other rounding. So without FSDP the main process
tunes as it would without a launcher, and the weights have the same bytes. With FSDP all processes tune together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType

from xlingtox import processes
from xlingtox.models.hooked import HookedLM
from xlingtox.tuning.recipe import Recipe, shared_out

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_", "ROLE_", "OMPI_COMM_", "PMI_", "MV2_COMM_")
"""The variables, and the beginnings of their names, by which launchers tell a process of the others."""

_WHOLE = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
"""Otherwise transformers reads a checkpoint in the main process only, and the others hold a model without weights. Of
sharded checkpoints, the processes may take different ones for the best."""

_DEFAULTS = {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""Where the launcher does not say. With no policy the weights of all layers would be gathered at once."""


def sharded() -> bool:
    """Return whether the launcher asks for FSDP and has started several processes."""
    return processes.count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


@contextmanager
def alone() -> Iterator[None]:
    """Hide the launcher and the other processes from accelerate, transformers and TRL inside the block."""
    hidden = dict.fromkeys(name for name in os.environ if name in _NAMES or name.startswith(_PREFIXES))
    with processes.separate(), _environment(hidden), _state_restored():
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        yield


@contextmanager
def together() -> Iterator[None]:
    """Let all processes tune one model whose weights are sharded inside the block."""
    changed = {name: os.environ.get(name, value) for name, value in _DEFAULTS.items()}
    # The recipe decides on the precision, and not the launcher.
    with _environment({**_WHOLE, **changed, "ACCELERATE_MIXED_PRECISION": None}), _state_restored():
        yield


def check_together(lm: HookedLM, recipe: Recipe) -> None:
    """Raise ValueError if the processes are to tune a model together and cannot.

    All processes call this, each with its own copy of the model.
    """
    if not sharded():
        return
    if recipe.method != "dpo":
        raise ValueError(
            f"method {recipe.method!r} cannot tune sharded weights, only dpo can: start "
            "without --use_fsdp, and the main process tunes alone"
        )
    shared_out(recipe.batch_size, recipe.accumulation, processes.count())
    if len(set(processes.gathered(lm.fingerprint()))) > 1:
        raise ValueError(
            f"{lm.name} has other weights in one process than in another: give its name or folder, or start "
            "with --fsdp_cpu_ram_efficient_loading false"
        )
    if lm.device.type == "cpu" and torch.cuda.is_available():
        raise ValueError(f"{lm.name} is on a CPU, and FSDP would use the GPUs: load it without device=")
    if lm.device.type == "cpu" and os.environ["FSDP_VERSION"] == "1":
        raise ValueError("the first version of FSDP runs on GPUs only: start with --fsdp_version 2")


def let_accelerate_shard() -> None:
    """Make the next Accelerator shard weights on CPUs too, which it does for processes with GPUs only."""
    state = PartialState()
    if sharded() and state.distributed_type == DistributedType.MULTI_CPU:
        # Any kind with an accelerator will do: the Accelerator goes on to call it FSDP.
        state.distributed_type = DistributedType.MULTI_XPU


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables inside the block; None removes one."""
    before = {name: os.environ.get(name) for name in changes}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    put(changes)
    try:
        yield
    finally:
        put(before)


@contextmanager
def _state_restored() -> Iterator[None]:
    """Restore what accelerate knows of the processes after the block, which transformers' arguments reset."""
    states = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    try:
        yield
    finally:
        for state, known in zip(states, before, strict=True):
            state.clear()
            state.update(known)
