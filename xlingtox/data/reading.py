"""Files as their publishers ship them: encodings, zip archives with a password, JSON lines, tables of text."""

import csv
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from xlingtox.data.bounded import LONGEST_LINE, raw_lines, unpacked
from xlingtox.data.loaded import Skips
from xlingtox.languages import CODES, check, in_order, spelled
from xlingtox.text import in_line, visible, well_formed

_BOM = "\ufeff"
_NOT_OURS = {
    b"\xff\xfe": "is UTF-16, not UTF-8: convert it",
    b"\xfe\xff": "is UTF-16, not UTF-8: convert it",
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"PAR1": "is Parquet: read it with from_columns",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run git lfs pull",
    b"<!DOCTYPE html": "is a web page: download the raw file",
    b"<html": "is a web page: download the raw file",
}


@dataclass(frozen=True)
class File:
    """A file on disk, or a member of a zip archive."""

    path: Path
    member: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Its name as messages and tables have it: nothing in it ends a line."""
        return in_line(self.name)

    @property
    def name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return PurePosixPath(self.name).stem

    @property
    def doubt(self) -> str:
        """What else may be wrong where the content makes no sense: archives let one wrong password in 256 by."""
        return "" if self.password is None else "; or the password is wrong"

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Raises ValueError, saying why, for what cannot be read, and for what unpacks to far more than it is."""
        where = in_line(self.path)
        try:
            if self.member is None:
                with self.path.open("rb") as stream:
                    yield stream
            else:
                password = None if self.password is None else self.password.encode()
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member, pwd=password) as stream:
                    yield unpacked(stream, self.path.stat().st_size, f"{where}: {self}")
        except NotImplementedError as error:
            raise ValueError(
                f"{where}: {self} is encrypted or packed in a way that Python cannot read ({error}): "
                "unpack it with another tool and give the folder"
            ) from error
        except (RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, EOFError, OSError) as error:
            # bzip2 says with an OSError, which has no number, that what it reads is damaged.
            if self.member is None or getattr(error, "errno", None) is not None:
                raise
            if self.password is not None:
                reason = "the password is wrong, or the archive is damaged"
            elif "password" in str(error):
                reason = "it is protected: give password=, which its publisher's page states"
            else:
                reason = f"the archive is damaged ({error})"
            raise ValueError(f"{where}: cannot read {self}: {reason}") from error


def files(source: str | Path, pattern: str, password: str | None = None) -> list[File]:
    """What `source` is or holds: one file, or those of a folder or zip archive whose names match, sorted by name.

    Raises:
        ValueError: there is no such file or folder, it holds none that matches, or it is not a zip archive.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [File(each) for each in path.rglob(pattern) if each.is_file()]
        held = [each.name for each in sorted(path.iterdir())]
    elif not path.is_file():
        raise ValueError(f"there is no file or folder {in_line(path)}")
    elif path.suffix.lower() != ".zip":
        return [File(path)]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                held = [info.filename for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ValueError(f"{in_line(path)} is not a zip archive: {error}") from error
        found = [File(path, name, password) for name in held if PurePosixPath(name).match(pattern)]
    found = [file for file in found if not file.name.startswith(".")]  # "._x" is what macOS adds to archives
    if not found:
        there = ", ".join(map(in_line, held[:5])) or "nothing"
        raise ValueError(f"{in_line(path)} holds no {pattern}: it holds {there}")
    return sorted(found, key=lambda file: file.name)


def one_file(source: str | Path, pattern: str) -> File:
    """A file, or the only matching one of a folder or zip archive.

    Raises:
        ValueError: as `files`, or there are several.
    """
    found = files(source, pattern)
    if len(found) > 1:
        raise ValueError(f"{in_line(source)} holds several files: give one of {', '.join(map(str, found))}")
    return found[0]


def by_language(
    found: Sequence[File],
    spelling: Callable[[File], str],
    languages: Sequence[str] | None,
    what: str,
    skips: Skips,
    default: Sequence[str] = CODES,
) -> dict[str, File]:
    """Language to file, in the order of `languages`, or of those of `default` that are there; others are skipped.

    Of several files in one language the one with the shortest name is taken; the only file is, whatever its language.

    Raises:
        ValueError: a language of `languages` is not there, or none of `default` is.
    """
    wanted = default if languages is None else check(languages)
    there: dict[str, File] = {}
    for file in sorted(found, key=lambda file: (len(file.name), file.name)):
        code = spelled(spelling(file))
        if code is None:
            skips.add(what, "language not known", file.name)
        elif code in there:
            skips.add(what, f"{code} read from {there[code]}", file.name)
        elif code in wanted or (languages is None and len(found) == 1):
            there[code] = file
        else:
            skips.add(what, "language not asked for", file.name)
    if not there:
        raise ValueError(f"{in_line(what)} holds no file named by a language: {skips}")
    if languages is not None:
        check_languages(wanted, there, what)
    return {code: there[code] for code in (*wanted, *there) if code in there}


def check_languages(wanted: Sequence[str], there: Mapping[Any, Any], what: str) -> None:
    """Raise ValueError, naming what is missing and what is there."""
    missing = [code for code in wanted if code not in there]
    if missing:
        known = ", ".join(in_order(code for code in there if code)) or "none that is known"
        raise ValueError(f"{in_line(what)} has no {', '.join(missing)}: it has {known}")


def lines(file: File) -> Iterator[tuple[int, str]]:
    """Numbered lines, as they are read; they end at a line feed only, as text may hold U+2028 and its like.

    Raises:
        ValueError: the file is empty, is not UTF-8, is of another kind, or has a line that is too long to be text.
    """
    number = 0
    with file.open() as stream:
        for number, raw in enumerate(raw_lines(stream, str(file)), 1):
            if number == 1:
                for head, what in _NOT_OURS.items():
                    if raw.startswith(head):
                        raise ValueError(f"{file} {what}{file.doubt}")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number}, byte 0x{raw[error.start]:02x}"
                raise ValueError(f"{file} is not UTF-8 ({where}): convert it{file.doubt}") from error
            yield number, line.removeprefix(_BOM) if number == 1 else line
    if number == 0:
        raise ValueError(f"{file} is empty")


def stripped_lines(file: File) -> Iterator[tuple[int, str]]:
    """As `lines`, without the line ends."""
    for number, line in lines(file):
        yield number, line.removesuffix("\n").removesuffix("\r")


def json_object(line: str) -> dict[str, Any] | str:
    """The object that a line holds, or why there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def json_rows(file: File, required: Sequence[str], skips: Skips) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON lines file with their line numbers; blank lines are nothing, others are counted as skipped.

    Raises:
        ValueError: as `lines`, or the first object lacks a required field.
    """
    checked = False
    for number, line in stripped_lines(file):
        if not line.strip():
            continue
        row = json_object(line)
        if isinstance(row, str):
            skips.add(file.name, row, number)
            continue
        if not checked:
            check_fields(file, row, required)
            checked = True
        yield number, row


def table_rows(
    file: File, required: Sequence[str], skips: Skips, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a delimited file with a header, as the csv module reads them, with the line on which each ends.

    Raises:
        ValueError: as `lines`, a required column is missing, quotation marks do not pair, a row is too long to be text,
            or a carriage return stands alone outside of quotation marks.
    """
    held = 0

    def bounded() -> Iterator[str]:
        # A quotation mark that does not pair takes the rest of the file into one field.
        nonlocal held
        for number, line in lines(file):
            held += len(line)
            if held > LONGEST_LINE:
                raise ValueError(
                    f"{file}, line {number}: the row is too long: do the quotation marks pair?{file.doubt}"
                )
            yield line

    reader = csv.reader(bounded(), delimiter=delimiter, strict=True)
    before = csv.field_size_limit(LONGEST_LINE)  # the limit is the process's: put back afterwards
    try:
        header = next(reader, [])
        check_fields(file, dict.fromkeys(header), required)
        for row in reader:
            held = 0
            if len(row) == len(header):
                yield reader.line_num, dict(zip(header, row, strict=True))
            elif row:
                skips.add(file.name, f"not {len(header)} fields", reader.line_num)
    except csv.Error as error:
        reason = f"the quotation marks do not pair: {error}"
        if "new-line" in str(error):
            reason = "a carriage return stands alone: convert the line ends to line feeds"
        raise ValueError(f"{file}, line {reader.line_num}: {reason}{file.doubt}") from error
    finally:
        csv.field_size_limit(before)


def check_fields(file: File, row: dict[str, Any], required: Sequence[str]) -> None:
    """Raise ValueError, naming what is missing and what is there; `a or b` asks for one of the two."""
    missing = [names for names in required if not any(name in row for name in names.split(" or "))]
    if missing:
        there = ", ".join(map(in_line, list(row)[:12])) or "none"
        raise ValueError(f"{file} has no field {', '.join(missing)}: it has {there}")


def text_of(value: Any) -> str | None:
    """Text as it can be stored, or None for what is no text or has nothing to see."""
    return well_formed(value) if isinstance(value, str) and visible(value) else None


def number_of(value: Any) -> float | None:
    """A finite number, also where it is written as text, or None."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None
