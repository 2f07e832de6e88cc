"""Text from models and data, made safe for a page: it is hostile until it went through here."""

import html

from xlingtox.text import seen


def escaped(value: object) -> str:
    """For a page, in text and in attributes."""
    return html.escape(seen(value))


def escaped_for_plotly(value: object) -> str:
    """For a label that plotly shows: it renders tags, but not the entities of quotation marks."""
    return html.escape(seen(value), quote=False)
