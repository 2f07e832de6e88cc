"""Whole HTML pages that carry all their content: a browser may run only their own scripts, and fetch nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

FONTS = (
    "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', "
    "'Noto Sans Devanagari', 'Noto Sans Arabic', 'Noto Naskh Arabic', 'Hiragino Sans', 'PingFang SC', "
    "'Microsoft YaHei', 'Yu Gothic', 'Malgun Gothic', 'Nirmala UI', 'Arial Unicode MS', sans-serif"
)
"""The reader's system font first, then fonts for scripts that it may lack."""


def document(title: str, body: str, name: str, data: object = None, *, libraries: Sequence[str] = ()) -> str:
    """Return a page with a content security policy: it runs only its own scripts, and fetches nothing.

    Args:
        title, body: HTML in which all text is escaped already.
        name: the name of the page's style and script, `{name}.css` and `{name}.js` in this folder.
        data: a JSON value for the script, in the element `page-data`. Without it the page has no script.
        libraries: JavaScript sources that run before the script.

    Example:
        >>> from xlingtox.html import document
        >>> document("Two texts", "<p>hello</p>", "tokens").splitlines()[0]
        '<!DOCTYPE html>'
    """
    # A closing tag inside a string of a library would end the script element.
    scripts = [script.replace("</script", "<\\/script") for script in libraries]
    if data is not None:
        scripts.append(Path(__file__).with_name(f"{name}.js").read_text("utf-8"))
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        f"script-src {allowed}"
    )
    style = Path(__file__).with_name(f"{name}.css").read_text("utf-8").replace("var(--fonts)", FONTS)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>",
            body,
            f'<script type="application/json" id="page-data">{_in_script(data)}</script>' if data is not None else "",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _in_script(value: object) -> str:
    """Return JSON without any `<`, so that neither `</script>` nor `<!--` in it can end its script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
