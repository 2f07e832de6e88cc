"""Read files as their publishers ship them: folders, zip archives with a password, JSON lines, CSV and TSV.

A file of another kind, such as a web page in place of the raw file, raises ValueError with the reason.
"""

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
from xlingtox.data.collecting import Skips
from xlingtox.languages import CODES, check, in_order, spelled
from xlingtox.text import first_line, in_line, visible, well_formed

_BOM = "\ufeff"
_FOREIGN_BEGINNINGS = {
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
    """A file on disk, or a member of a zip archive.

    Attributes:
        path: the file on disk, or the archive.
        member: the name inside the archive; None for a file on disk.
        password: the password of the archive, if it has one.

    Example:
        >>> from pathlib import Path
        >>> from xlingtox.data.reading import File
        >>> File(Path("RTP-LX.zip"), "RTP_LX/RTP_LX_DE.json").stem
        'RTP_LX_DE'
    """

    path: Path
    member: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return the name for messages and tables, with line ends escaped."""
        return in_line(self.name)

    @property
    def name(self) -> str:
        """The name without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def stem(self) -> str:
        """The name without folders and ending."""
        return PurePosixPath(self.name).stem

    @property
    def doubt(self) -> str:
        """The words to add to an error about the content.

        A zip archive accepts one wrong password in 256. Then the content is garbage.
        """
        return "" if self.password is None else "; or the password is wrong"

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file for reading bytes.

        Raises:
            ValueError: it cannot be read, or it unpacks to far more than its archive. The message says why.
        """
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
            # bzip2 reports damaged data by an OSError without a number.
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
    """Return the one file that `source` is, or the matching files of a folder or zip archive, sorted by name.

    Raises:
        ValueError: there is no such file or folder, no name in it matches, or it is not a zip archive.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        matching = [File(file) for file in path.rglob(pattern) if file.is_file()]
        names = [entry.name for entry in sorted(path.iterdir())]
    elif not path.is_file():
        raise ValueError(f"there is no file or folder {in_line(path)}")
    elif path.suffix.lower() != ".zip":
        return [File(path)]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ValueError(f"{in_line(path)} is not a zip archive: {error}") from error
        matching = [File(path, name, password) for name in names if PurePosixPath(name).match(pattern)]
    visible_files = [file for file in matching if not file.name.startswith(".")]  # macOS adds "._x" to archives.
    if not visible_files:
        content = ", ".join(map(in_line, names[:5])) or "nothing"
        raise ValueError(f"{in_line(path)} holds no {pattern}: it holds {content}")
    return sorted(visible_files, key=lambda file: file.name)


def one_file(source: str | Path, pattern: str) -> File:
    """Return a file, or the only matching file of a folder or zip archive.

    Raises:
        ValueError: `files` refuses the source, or there are several files.
    """
    matching = files(source, pattern)
    if len(matching) > 1:
        raise ValueError(f"{in_line(source)} holds several files: give one of {', '.join(map(str, matching))}")
    return matching[0]


def by_language(
    candidates: Sequence[File],
    spelling: Callable[[File], str],
    *,
    languages: Sequence[str] | None,
    what: str,
    skips: Skips,
    default: Sequence[str] = CODES,
) -> dict[str, File]:
    """Choose a file for each language, and count the other files as skipped.

    Where a language has several files, the one with the shortest name is chosen. Where `languages` is None and there is
    only one file, it is chosen whatever its language.

    Args:
        candidates: the files.
        spelling: a function from a file to the spelling of its language.
        languages: the languages to read, in this order; None reads those of `default` that have a file.
        what: the name of the source, for messages.
        skips: the count of skipped files.
        default: the languages to look for where `languages` is None.

    Raises:
        ValueError: one of `languages` has no file, or none of `default` has one.
    """
    wanted = default if languages is None else check(languages)
    files_by_language: dict[str, File] = {}
    for file in sorted(candidates, key=lambda file: (len(file.name), file.name)):
        code = spelled(spelling(file))
        if code is None:
            skips.add(what, "language not known", file.name)
        elif code in files_by_language:
            skips.add(what, f"{code} read from {files_by_language[code]}", file.name)
        elif code in wanted or (languages is None and len(candidates) == 1):
            files_by_language[code] = file
        else:
            skips.add(what, "language not asked for", file.name)
    if not files_by_language:
        raise ValueError(f"{in_line(what)} holds no file named by a language: {skips}")
    if languages is not None:
        check_languages(wanted, files_by_language, what)
    return {code: files_by_language[code] for code in (*wanted, *files_by_language) if code in files_by_language}


def check_languages(wanted: Sequence[str], existing: Mapping[Any, Any], what: str) -> None:
    """Raise ValueError where a wanted language is missing. The message names those missing and those that exist."""
    missing = [code for code in wanted if code not in existing]
    if missing:
        known = ", ".join(in_order(code for code in existing if code)) or "none that is known"
        raise ValueError(f"{in_line(what)} has no {', '.join(missing)}: it has {known}")


def lines(file: File) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers. Only a line feed ends a line, because text may hold U+2028 and the like.

    Raises:
        ValueError: the file is empty, is not UTF-8, is of another kind, or has a line that is too long to be text.
    """
    number = 0
    with file.open() as stream:
        for number, raw in enumerate(raw_lines(stream, str(file)), 1):
            if number == 1:
                for beginning, problem in _FOREIGN_BEGINNINGS.items():
                    if raw.startswith(beginning):
                        raise ValueError(f"{file} {problem}{file.doubt}")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number}, byte 0x{raw[error.start]:02x}"
                raise ValueError(f"{file} is not UTF-8 ({where}): convert it{file.doubt}") from error
            yield number, line.removeprefix(_BOM) if number == 1 else line
    if number == 0:
        raise ValueError(f"{file} is empty")


def stripped_lines(file: File) -> Iterator[tuple[int, str]]:
    """Yield the same as `lines`, without the line ends."""
    for number, line in lines(file):
        yield number, line.removesuffix("\n").removesuffix("\r")


def json_object(line: str) -> dict[str, Any] | str:
    """Return the object that a line of JSON holds, or the reason why there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def json_rows(file: File, required: Sequence[str], skips: Skips) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON lines file with their line numbers.

    Blank lines are ignored. Lines that hold no object are counted as skipped.

    Raises:
        ValueError: `lines` refuses the file, or the first object lacks a required field.
    """
    is_checked = False
    for number, line in stripped_lines(file):
        if not line.strip():
            continue
        row = json_object(line)
        if isinstance(row, str):
            skips.add(file.name, row, number)
            continue
        if not is_checked:
            check_fields(file, row, required)
            is_checked = True
        yield number, row


def json_array(file: File, required: Sequence[str], skips: Skips) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file that holds one JSON array, or JSON lines, with their numbers from 0.

    Items that are no objects are counted as skipped.

    Raises:
        ValueError: `lines` refuses the file, it holds neither of the two, it is too long to be read at once, or its
            first object lacks a required field.
    """
    parts: list[str] = []
    length = 0
    for _, line in lines(file):
        length += len(line)
        if length > LONGEST_LINE:
            raise ValueError(f"{file}: the array is longer than {LONGEST_LINE:,} characters: write it as JSON lines")
        parts.append(line)
    text = "".join(parts)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        values = [json_object(line) for line in text.split("\n") if line.strip()]
        if not values or isinstance(values[0], str):
            raise ValueError(
                f"{file} is neither a JSON array nor JSON lines: {first_line(error)}{file.doubt}"
            ) from error
    is_checked = False
    for number, row in enumerate(values if isinstance(values, list) else [values]):
        if not isinstance(row, dict):
            skips.add(file.name, "not a JSON object", f"item {number}")
            continue
        if not is_checked:
            check_fields(file, row, required)
            is_checked = True
        yield number, row


def table_rows(
    file: File, required: Sequence[str], skips: Skips, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a delimited file with a header, each with the number of its last line.

    Raises:
        ValueError: `lines` refuses the file, a required column is missing, quotation marks do not pair, a row is too
            long to be text, or a carriage return stands alone outside of quotation marks.
    """
    row_length = 0

    def bounded() -> Iterator[str]:
        # A quotation mark without its pair pulls the rest of the file into one field.
        nonlocal row_length
        for number, line in lines(file):
            row_length += len(line)
            if row_length > LONGEST_LINE:
                raise ValueError(
                    f"{file}, line {number}: the row is too long: do the quotation marks pair?{file.doubt}"
                )
            yield line

    reader = csv.reader(bounded(), delimiter=delimiter, strict=True)
    limit_before = csv.field_size_limit(LONGEST_LINE)  # The limit belongs to the process, so it is put back below.
    try:
        header = next(reader, [])
        check_fields(file, dict.fromkeys(header), required)
        for row in reader:
            row_length = 0
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
        csv.field_size_limit(limit_before)


def check_fields(file: File, row: dict[str, Any], required: Sequence[str]) -> None:
    """Raise ValueError where a row lacks a required field. The message names the fields that exist.

    The name `a or b` requires one of the two.
    """
    missing = [names for names in required if not any(name in row for name in names.split(" or "))]
    if missing:
        existing = ", ".join(map(in_line, list(row)[:12])) or "none"
        raise ValueError(f"{file} has no field {', '.join(missing)}: it has {existing}")


def text_of(value: Any) -> str | None:
    """Return text as it can be stored, or None where the value is not text or shows nothing."""
    return well_formed(value) if isinstance(value, str) and visible(value) else None


def number_of(value: Any) -> float | None:
    """Return a finite number, also from text such as "0.5", or None where there is none."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None
