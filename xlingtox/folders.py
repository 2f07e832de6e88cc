"""Folders that results go to."""

from pathlib import Path


def writable_folder(path: str | Path) -> Path:
    """Make a folder if need be and prove that it can be written.

    Raises:
        OSError: it is a file, or cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".xlingtox-writable"
        trial.write_text("", "utf-8")
        trial.unlink()
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    return folder
