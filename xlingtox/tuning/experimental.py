"""The trainers that TRL calls experimental. A later TRL may move them, and that is said in one line."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from xlingtox.tuning.recipe import Method

_CLASSES: Mapping[Method, tuple[str, str, str]] = {
    "orpo": ("trl.experimental.orpo", "ORPOTrainer", "ORPOConfig"),
    "simpo": ("trl.experimental.cpo", "CPOTrainer", "CPOConfig"),
}
"""The methods whose trainers are experimental: the module, the trainer and its configuration."""


def check(method: Method) -> None:
    """Raise ImportError if TRL has no module for the method any more. The trainers themselves are not imported."""
    if method not in _CLASSES:
        return
    with _explained(method):
        if importlib.util.find_spec(_CLASSES[method][0]) is None:
            raise ImportError("there is no such module")


def classes(method: Method) -> tuple[Any, Any]:
    """Return the trainer of a method and its configuration.

    Raises:
        ImportError: this version of TRL has them elsewhere, or not at all.
    """
    module, *names = _CLASSES[method]
    with _explained(method):
        home = importlib.import_module(module)
        trainer, config = (getattr(home, name) for name in names)
    return trainer, config


@contextmanager
def _explained(method: Method) -> Iterator[None]:
    """Leave out TRL's warning inside the block, and say which TRL has the trainer where this one has not."""
    module, trainer, _ = _CLASSES[method]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*trl\.experimental")
            yield
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"method {method!r} needs {trainer} from {module}, which trl {version('trl')} does not have ({error}): "
            "pip install 'trl>=1.16,<1.17'"
        ) from error
