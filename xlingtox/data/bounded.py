"""Limits on files from outside, so that none fills the memory.

A hostile file looks small until it is read: an archive can unpack to a thousand times its size.
"""

import io
from collections.abc import Iterator
from typing import IO, Any

LONGEST_LINE = 2**26
"""The most bytes that a line may have, and the most characters of a row of a table."""

MOST_UNPACKED = 2**33
"""The most bytes to which one file in an archive may unpack."""

MOST_TIMES = 100
"""A file may be at most this many times as large as its archive. Text shrinks to a tenth, rarely to a thirtieth."""

HARMLESS = 2**26
"""A file may unpack to this many bytes, however small its archive is."""


def raw_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield lines with their ends. Only a line feed ends a line.

    Raises:
        ValueError: a line is longer than `LONGEST_LINE`.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{name}, line {number}: longer than {LONGEST_LINE:,} bytes, so it is no line of text")
        yield line


def unpacked(stream: IO[bytes], packed: int, name: str) -> io.BufferedReader:
    """Return a reader of a file in an archive, which raises ValueError when the file unpacks to too many bytes.

    The limit depends on the size of the archive. The bytes are counted while reading, because an archive may lie about
    the sizes of its files.

    Args:
        packed: the number of bytes of the archive.

    Raises:
        ValueError: raised while reading, once more bytes have come out.
    """
    return io.BufferedReader(_Bounded(stream, packed, name))


class _Bounded(io.RawIOBase):
    def __init__(self, stream: IO[bytes], packed: int, name: str) -> None:
        self._stream, self._packed, self._name = stream, packed, name
        self._most = min(MOST_UNPACKED, max(HARMLESS, MOST_TIMES * packed))
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(len(buffer))
        self._read += len(chunk)
        if self._read > self._most:
            raise ValueError(
                f"{self._name} unpacks to more than {self._most:,} bytes, of an archive of {self._packed:,}: if you "
                "trust it, unpack it with another tool and give the folder"
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)
