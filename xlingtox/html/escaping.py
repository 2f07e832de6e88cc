"""Escaping of text from models and data. Treat such text as hostile until it has passed through here."""

import html

from xlingtox.text import seen


def escaped(value: object) -> str:
    """Return the value as text that is safe in a page's text and attributes.

    Example:
        >>> from xlingtox.html.escaping import escaped
        >>> escaped('<b title="a">')
        '&lt;b title=&quot;a&quot;&gt;'
    """
    return html.escape(seen(value))


def escaped_for_plotly(value: object) -> str:
    """Return the value as text that is safe in a plotly label.

    Plotly renders tags, but it would show the entities of quotes as they are. So quotes stay quotes.
    """
    return html.escape(seen(value), quote=False)
