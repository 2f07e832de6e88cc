"""Keep a trainer's side effects away from the rest of the process: hub calls, log lines, bars, random numbers."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator

import datasets
import numpy as np
import torch
from huggingface_hub import constants

from xlingtox.models import loading

_OFFLINE = "HF_HUB_OFFLINE"
_NO_BARS = "TQDM_DISABLE"


@contextlib.contextmanager
def no_hub_calls() -> Iterator[None]:
    """Keep TRL and PEFT from calling the Hugging Face hub inside the block, and restore the switches afterwards.

    TRL reports each run of a trainer. PEFT asks the hub for the configuration of the base model whenever it saves an
    adapter. Neither is needed, because the model is on this machine already.
    """
    # The hub's client reads its switch from the environment at import. PEFT reads its own at each call.
    silenced, offline = constants.HF_HUB_DISABLE_TELEMETRY, os.environ.get(_OFFLINE)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = silenced
        os.environ.pop(_OFFLINE, None)
        if offline is not None:
            os.environ[_OFFLINE] = offline


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the process's random state after the block, because the trainer seeds the global generators."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide progress bars, log lines and known warnings of TRL, transformers, datasets and PEFT inside the block."""
    loggers = [logging.getLogger(name) for name in ("trl", "transformers")]
    levels = [logger.level for logger in loggers]
    bars_shown, bars_switch = not datasets.are_progress_bars_disabled(), os.environ.get(_NO_BARS)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ[_NO_BARS] = "1"
    try:
        with warnings.catch_warnings(), loading.no_weight_bars():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", module=r"peft\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars_shown:
            datasets.enable_progress_bars()
        os.environ.pop(_NO_BARS)
        if bars_switch is not None:
            os.environ[_NO_BARS] = bars_switch
