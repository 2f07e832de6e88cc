"""Small files as publishers ship them, and zip archives with a password: Python reads these and does not write them."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from datasets import Dataset

from xlingtox import data

AES = 99
BOM = b"\xef\xbb\xbf"


def jsonl(*rows: object) -> bytes:
    """A value a line; what UTF-8 cannot hold is escaped."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def table(*rows: Sequence[str], delimiter: str = ",") -> bytes:
    """A row a line; nothing is quoted."""
    return "".join(delimiter.join(row) + "\n" for row in rows).encode()


def written(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """The folder, with these files in it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def repository(folder: Path, parts: Mapping[tuple[str, str], Sequence[object]]) -> Path:
    """A copy of a hub repository: parts (config, split) to rows."""
    configs: dict[str, list[dict[str, str]]] = {}
    for (config, split), rows in parts.items():
        written(folder, {f"{config}/{split}.jsonl": jsonl(*rows)})
        configs.setdefault(config, []).append({"split": split, "path": f"{config}/{split}.jsonl"})
    listed = [{"config_name": config, "data_files": files} for config, files in configs.items()]
    written(folder, {"README.md": f"---\nconfigs: {json.dumps(listed)}\n---\n"})
    return folder


def left_out(loaded: Dataset) -> list[tuple[str, str, int, str]]:
    """(source, reason, count, first) of each."""
    return [tuple(row) for row in data.skipped(loaded).itertuples(index=False)]


def write_zip(path: Path, members: Mapping[str, bytes], password: str, method: int = 0) -> Path:
    """Stored members under PKWARE's traditional encryption; `method` is how they are said to be packed."""
    with ZipFile(path, "w") as archive:
        for name, plain in members.items():
            info = ZipInfo(name)
            info.flag_bits |= 1
            info.compress_type = method
            info.CRC = zlib.crc32(plain)
            info.file_size = len(plain)
            secret = bytes(encrypted(bytes(11) + bytes([info.CRC >> 24]) + plain, password.encode()))
            info.compress_size = len(secret)
            info.header_offset = archive.fp.tell()
            archive.fp.write(info.FileHeader(zip64=False) + secret)
            archive.filelist.append(info)
            archive.NameToInfo[name] = info
        archive.start_dir = archive.fp.tell()
        archive._didModify = True
    return path


def encrypted(plain: bytes, password: bytes) -> Iterator[int]:
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc(state: int, byte: int) -> int:
        return zlib.crc32(bytes([byte]), state ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte: int) -> None:
        keys[0] = crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    for byte in plain:
        mask = (keys[2] | 2) & 0xFFFF
        yield byte ^ ((mask * (mask ^ 1)) >> 8 & 0xFF)
        update(byte)
