"""Hostile files: small ones that unpack to much, lines and rows without an end, and names that forge a line."""

import io
import logging
import tracemalloc
import zipfile
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile

import pytest
from published import jsonl, left_out, table, write_zip, written

from xlingtox import data
from xlingtox.data import bounded
from xlingtox.data.bounded import raw_lines, unpacked
from xlingtox.scoring import PerspectiveReplay
from xlingtox.text import in_line

FORGED = "RTP_LX_\nWARNING root: all is well\x1b[2J\u2028_EN.json"
ESCAPED = "RTP_LX_\\nWARNING root: all is well\\x1b[2J\\u2028_EN.json"


ROWS = jsonl({"Prompt": "a fool", "Locale": "en"}, {"Prompt": ""})

ROW = b'{"Prompt": "%s"}\n' % (b"x" * 500)


def bomb(path, size, method=ZIP_DEFLATED, unit=ROW):
    """One member of `size` bytes, written in parts."""
    part = unit * (2**16 // len(unit))
    with ZipFile(path, "w", method) as archive, archive.open("RTP_LX_EN.json", "w", force_zip64=True) as member:
        for _ in range(size // len(part) + 1):
            member.write(part)
    return path


@pytest.mark.parametrize("unit", [ROW, b"\n", b"\0"])
@pytest.mark.parametrize("method", [ZIP_DEFLATED, ZIP_BZIP2, ZIP_LZMA])
def test_a_small_archive_is_not_unpacked_to_much(tmp_path, monkeypatch, method, unit):
    monkeypatch.setattr(bounded, "HARMLESS", 2**16)
    path = bomb(tmp_path / "RTP-LX.zip", 2**21, method, unit)
    most = max(2**16, 100 * path.stat().st_size)
    assert most < 2**21
    with pytest.raises(ValueError, match=rf"RTP-LX.zip: RTP_LX_EN.json unpacks to more than {most:,} bytes") as caught:
        data.rtp_lx(path)
    assert "\n" not in str(caught.value)


def test_little_of_it_is_in_memory(tmp_path, monkeypatch):
    """A line without an end in 64 million bytes, which are 64 thousand in the archive."""
    monkeypatch.setattr(bounded, "HARMLESS", 2**20)
    path = bomb(tmp_path / "RTP-LX.zip", 2**26, unit=b" ")
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpacks to more than"):
        data.rtp_lx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25


@pytest.mark.parametrize(("field", "at"), [("compress_size", 20), ("file_size", 24)])
@pytest.mark.parametrize("claim", [2**10, 2**31])
def test_what_an_archive_says_of_its_sizes_bounds_nothing(tmp_path, monkeypatch, field, at, claim):
    monkeypatch.setattr(bounded, "HARMLESS", 2**16)
    path = bomb(tmp_path / "a.zip", 2**21)
    content = bytearray(path.read_bytes())
    with ZipFile(path) as archive:
        size = getattr(archive.infolist()[0], field)
    place = content.rindex(b"PK\x01\x02") + at
    assert int.from_bytes(content[place : place + 4], "little") == size
    content[place : place + 4] = claim.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.zip: (RTP_LX_EN.json unpacks to more than|cannot read RTP_LX_EN.json)"):
        data.rtp_lx(path)


def test_no_file_is_larger_than_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "MOST_UNPACKED", 2**16)
    path = bomb(tmp_path / "a.zip", 2**17, ZIP_STORED)
    with pytest.raises(ValueError, match="unpacks to more than 65,536 bytes"):
        data.rtp_lx(path)
    locked = write_zip(tmp_path / "locked.zip", {"RTP_LX_EN.json": b'{"Prompt": "x"}\n' * 2**13}, "right")
    with pytest.raises(ValueError, match="unpacks to more than 65,536 bytes"):
        data.rtp_lx(locked, password="right")


def test_text_that_packs_well_is_read(tmp_path):
    rows = jsonl(*({"Prompt": f"you fool {i}"} for i in range(500)))
    with ZipFile(tmp_path / "a.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr("RTP_LX_EN.json", rows)
    assert len(data.rtp_lx(tmp_path / "a.zip")) == 500


@pytest.mark.parametrize("method", [ZIP_BZIP2, ZIP_LZMA])
def test_a_damaged_archive_is_named(tmp_path, method):
    path = bomb(tmp_path / "a.zip", 2**16, method)
    content = bytearray(path.read_bytes())
    for place in range(60, 90):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.zip: cannot read RTP_LX_EN.json: the archive is damaged"):
        data.rtp_lx(path)


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("RTP_LX_EN.json", b"x" * 3000, data.rtp_lx),
        ("train.csv", b"comment_text,toxic\n" + b"x" * 3000 + b",1\n", data.jigsaw),
        ("en", b"fool\n" + b"x" * 3000, data.word_lists),
        ("any.jsonl", b"{}" * 1500, lambda path: data.from_columns(path, {"text": "x"}, language="en")),
        ("x.json", b"x" * 3000, PerspectiveReplay),
    ],
)
def test_a_line_without_an_end(tmp_path, monkeypatch, name, content, read):
    monkeypatch.setattr(bounded, "LONGEST_LINE", 2048)
    written(tmp_path, {name: content})
    with pytest.raises(ValueError, match=rf"{name}, line \d: longer than 2,048 bytes") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_row_without_an_end(tmp_path, monkeypatch):
    """A quotation mark that does not pair takes all that follows into its field."""
    monkeypatch.setattr("xlingtox.data.reading.LONGEST_LINE", 2048)
    rows = [["comment_text", "toxic"], *([f'line {i}, a "word"', "1"] for i in range(5)), ['"open', "1"]]
    written(
        tmp_path, {"train.csv": table(*rows[:1], ["fine", "1"], rows[-1], *([f"line {i}", "1"] for i in range(400)))}
    )
    with pytest.raises(ValueError, match=r"train.csv, line \d+: the row is too long: do the quotation marks pair\?"):
        data.jigsaw(tmp_path / "train.csv")
    written(tmp_path, {"train.csv": table(*rows[:1], *([f"line {i}", "1"] for i in range(400)))})
    assert len(data.jigsaw(tmp_path / "train.csv")) == 400


def test_lines_are_as_python_has_them():
    content = b"a\n\nb\r\nc\rd\xe2\x80\xa8e\n" + b"x" * 600_000 + b"\nlast"
    assert list(raw_lines(io.BytesIO(content), "x")) == list(io.BytesIO(content))
    packed = io.BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        archive.writestr("x", content)
    with ZipFile(packed) as archive, archive.open("x") as stream, unpacked(stream, 10**6, "x") as bound:
        assert list(raw_lines(bound, "x")) == list(io.BytesIO(content))


# --- names


@pytest.fixture
def forged(tmp_path):
    """A folder and an archive with a file whose name holds a line of a log."""
    folder = written(tmp_path / "folder", {FORGED: ROWS})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(FORGED, ROWS)
    return folder, tmp_path / "a.zip"


def test_a_name_forges_no_line(forged, caplog):
    for source in forged:
        with caplog.at_level(logging.WARNING):
            loaded = data.rtp_lx(source)
        assert [row[:3] for row in left_out(loaded)] == [(ESCAPED, "no text in Prompt", 1)]
        assert all(record.getMessage().isprintable() for record in caplog.records)
        assert ESCAPED in caplog.text


def test_what_is_skipped_forges_no_line(tmp_path, caplog):
    """Languages come from the data, and places may be names."""
    written(tmp_path, {"de\n.x": "Narr", "xx\n.txt": "fool", "en": "fool"})
    assert data.word_lists(tmp_path).keys() == {"de", "en"}
    assert all(record.getMessage().isprintable() for record in caplog.records)
    skips = data.collecting.Skips()
    skips.add("a\nb", "language x\ny not asked for", "z\r")
    assert skips.rows() == [("a\\nb", "language x\\ny not asked for", 1, "z\\r")]


@pytest.mark.parametrize(
    "content", [b"", b"ok\nf\xfcr\n", b"\x1f\x8brest", b'{"Other": 1}\n', b'{"a\\nb": 1}\n', b'{"Prompt": ""}\n']
)
def test_an_error_is_one_line(tmp_path, content):
    source = written(tmp_path / "folder\n[root]", {FORGED: content})
    with pytest.raises(ValueError, match="RTP_LX_") as caught:
        data.rtp_lx(source)
    assert str(caught.value).isprintable()
    for wrong in (source / "none\n.zip", written(source, {"a\n.zip": b"no archive"}) / "a\n.zip"):
        with pytest.raises(ValueError, match=r"none\\n.zip|a\\n.zip") as caught:
            data.rtp_lx(wrong)
        assert str(caught.value).isprintable()


def test_in_line():
    assert in_line("Müller 傻瓜.txt") == "Müller 傻瓜.txt"
    assert in_line("a\nb\t\x00\u202e\udcff\U000e0001") == "a\\nb\\t\\x00\\u202e\\udcff\\U000e0001"
    assert len(in_line("x" * 10_000)) == 201
