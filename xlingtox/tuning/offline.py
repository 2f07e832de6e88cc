"""Training without calls to the hub: what is tuned is here already."""

import contextlib
import os
from collections.abc import Iterator

from huggingface_hub import constants

_OFFLINE = "HF_HUB_OFFLINE"


@contextlib.contextmanager
def no_calls_of_trainers() -> Iterator[None]:
    """Keep TRL and PEFT from calling the Hugging Face hub inside the block; afterwards all is as it was.

    TRL reports each run of a trainer. PEFT asks the hub for the configuration of the base that a model in memory
    names, whenever it saves an adapter.
    """
    # The hub's client reads its switch from the environment when it is imported, PEFT reads its own at each call.
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
