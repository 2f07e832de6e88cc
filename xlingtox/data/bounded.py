"""Files from outside, no more of them than can be held: a hostile one is small until it is read."""

import io
from collections.abc import Iterator
from typing import IO, Any

LONGEST_LINE = 2**26
"""Bytes of a line, and characters of a row of a table."""

MOST_UNPACKED = 2**33
"""Bytes that one file in an archive may have."""

MOST_TIMES = 100
"""How many times its archive's size a file may have: text is packed to a tenth, seldom to a thirtieth."""

HARMLESS = 2**26
"""Bytes that may be unpacked from however small an archive."""


def raw_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines with their ends, which are line feeds only.

    Raises:
        ValueError: one is longer than `LONGEST_LINE`.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{name}, line {number}: longer than {LONGEST_LINE:,} bytes, so it is no line of text")
        yield line


def unpacked(stream: IO[bytes], packed: int, name: str) -> io.BufferedReader:
    """Bound what is read of a file in an archive, by size and by its ratio to the archive.

    What counts is what comes out: an archive may say anything of the sizes of its files.

    Args:
        packed: bytes of the archive.

    Raises:
        ValueError: by the reader, once more has come out.
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
        part = self._stream.read(len(buffer))
        self._read += len(part)
        if self._read > self._most:
            raise ValueError(
                f"{self._name} unpacks to more than {self._most:,} bytes, of an archive of {self._packed:,}: if it is "
                "no trap, unpack it with another tool and give the folder"
            )
        buffer[: len(part)] = part
        return len(part)
