"""HTML that is safe to show: escaped text, tables, whole pages and masked words."""

from xlingtox.html.pages import FONTS, document

__all__ = [
    "FONTS",
    "document",
]
