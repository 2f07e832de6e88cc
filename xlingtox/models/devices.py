"""Devices: choose where weights are put, and check that this machine has the place."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch

from xlingtox.text import first_line

DeviceMap = str | int | torch.device | Mapping[str, Any]
"""Transformers' option for spreading a model: a word such as "auto", one device, or a device for each module."""

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""The words that leave it to transformers which module goes to which device."""


def default_device() -> str:
    """Return the GPU if there is one, else the CPU. Under a launcher such as torchrun, each process has its own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def check_device(device: Any, option: str = "device") -> None:
    """Raise ValueError unless this machine has the device.

    Args:
        option: the name of the argument, for the message.
    """
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{option} {str(device)!r} is not available on this machine: {first_line(error)}") from error


def placement(device: Any, device_map: DeviceMap | None) -> dict[str, Any]:
    """Return the options that tell transformers where to put weights. Without a device map there are none.

    Raises:
        ValueError: both a device and a device map are given, a device is not there, or accelerate is missing.
    """
    if device_map is None:
        return {}
    if device is not None:
        raise ValueError("give device or device_map, not both")
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError("device_map needs the package accelerate: pip install accelerate")
    if isinstance(device_map, str) and device_map in _SPREAD:
        return {"device_map": device_map}
    devices = dict(device_map) if isinstance(device_map, Mapping) else {"": device_map}
    for place in devices.values():
        if isinstance(place, int) or str(place).isdigit() or str(place).startswith("cuda"):
            number = int(str(place).removeprefix("cuda").removeprefix(":") or 0)
            if number >= torch.cuda.device_count():
                raise ValueError(
                    f"device_map names {place}: this machine has {torch.cuda.device_count()} CUDA devices; "
                    "use device_map='auto', or device='cpu'"
                )
        elif place != "disk":
            check_device(place, "device_map's place")
    return {"device_map": devices}
