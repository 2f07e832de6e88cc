"""A log file in the study's folder: what the library said while the study ran, with the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Append what the library logs inside the block to a file, in UTF-8.

    Example:
        >>> import logging
        >>> from xlingtox.study.log_file import logging_to
        >>> with logging_to(tmp_path / "study.log"):
        ...     logging.getLogger("xlingtox.study").info("localize: done")
        >>> (tmp_path / "study.log").read_text()[-15:]
        'localize: done\\n'
    """
    logger, handler = logging.getLogger("xlingtox"), logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
