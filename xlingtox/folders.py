"""Folders that results go to."""

import tempfile
from pathlib import Path


def writable_folder(path: str | Path) -> Path:
    """Make a folder, `~` being the home folder, if need be and prove that it can be written.

    Raises:
        OSError: it is a file, or cannot be made or written.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name: several processes may ask at once, and one that is killed here leaves nothing.
        with tempfile.TemporaryFile(dir=folder, prefix=".xlingtox-"):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    return folder
