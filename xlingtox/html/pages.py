"""HTML pages that hold all they show: a browser may run only their own scripts, and fetch nothing."""

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
"""A system's own font first, then those that hold the scripts it may lack."""


def document(title: str, body: str, name: str, held: object = None, libraries: Sequence[str] = ()) -> str:
    """A page whose policy lets a browser run no script but its own, and fetch nothing.

    Args:
        title, body: HTML, in which every text is escaped already.
        name: of the page's own style and script, which stand beside this file.
        held: JSON for the script, in an element `held`; without it there is no script.
        libraries: JavaScript that runs before the script.
    """
    # A closing tag inside a library's strings would end its element.
    scripts = [script.replace("</script", "<\\/script") for script in libraries]
    if held is not None:
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
            f'<script type="application/json" id="held">{_in_script(held)}</script>' if held is not None else "",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _in_script(value: object) -> str:
    """JSON that cannot leave its `<script>`: no `<` stands in it, so neither `</script>` nor `<!--` does."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
