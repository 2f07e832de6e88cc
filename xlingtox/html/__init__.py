"""HTML that is safe to show: escaped text, small tables, whole pages, and masks over toxic words.

It serves notebooks, the study's report and the token views.
"""

from xlingtox.html.pages import FONTS, document

__all__ = [
    "FONTS",
    "document",
]
