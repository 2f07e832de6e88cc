"""Type checks of public calls: a wrong argument is refused in one line, before any work starts.

Put `@checked` above a public function, method or class (whose constructor it checks). `guard` holds the decorator,
`hints` decides which values an annotation accepts, and `messages` words the refusal.

Annotations are read as people mean them. A numpy number is a number, `True` is not, and a string is not a list of
strings. Wherever a list of values is expected, a tuple, an array or a column of a data frame will do.
"""

from xlingtox.checking.guard import checked
from xlingtox.checking.hints import is_number, is_whole
from xlingtox.checking.messages import shown

__all__ = [
    "checked",
    "is_number",
    "is_whole",
    "shown",
]
