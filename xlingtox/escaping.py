"""Text from models and data, made safe to show and to encode: it is hostile until it went through here."""

import html
import re

_LONGEST_NAME = 200

# Not for display: control characters but tab and line ends, lone surrogates, and what reorders the words beside it.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_SURROGATE = re.compile("[\ud800-\udfff]")


def seen(value: object) -> str:
    """Without what is not for display."""
    return _UNSEEN.sub("\ufffd", str(value))


def in_line(value: object) -> str:
    """Text from outside, such as a file's name, for one line of a log or a message.

    What cannot be printed is written as its escape, so that a name with a line end forges no line; the middle of a long
    text is left out.
    """
    text = str(value)
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME // 2]}…{text[-_LONGEST_NAME // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def escaped(value: object) -> str:
    """For a page, in text and in attributes."""
    return html.escape(seen(value))


def escaped_for_plotly(value: object) -> str:
    """For a label that plotly shows: it renders tags, but not the entities of quotation marks."""
    return html.escape(seen(value), quote=False)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of another library says, or the error's kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def well_formed(text: str) -> str:
    """Text that can be encoded: surrogate pairs joined, lone ones (as half an emoji in JSON) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text
