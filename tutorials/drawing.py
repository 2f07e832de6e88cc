"""Draw the package's folders and their one-way arrows, read from the code itself, as an SVG.

An arrow leads from a folder to those that import it. An arrow that follows from others is left out: where `neurons`
imports `models` and `models` imports `data`, none leads from `data` to `neurons`.
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "xlingtox"

PLACES = {
    "checking": (1, 0),
    "languages": (1, 1),
    "verdicts": (2, 1),
    "text": (1, 2),
    "data": (0, 3),
    "html": (1, 3),
    "remote": (4, 3),
    "files": (3, 3),
    "databases": (0, 4),
    "models": (1, 4),
    "progress": (3, 4),
    "processes": (4, 4),
    "equality": (0, 5),
    "neurons": (1, 5),
    "tuning": (4, 6),
    "scoring": (0, 6),
    "edits": (1, 6),
    "evaluation": (1, 7),
    "measures": (2, 7),
    "transfer": (1, 8),
    "paper": (2, 8),
    "methods": (3, 8),
    "frontiers": (3, 9),
    "matrix": (4, 9),
    "figures": (1, 10),
    "mini": (0, 11),
    "study": (1, 11),
    "cli": (1, 12),
}
"""Where each folder or module of the package stands: its column and its row."""

WIDTH, HEIGHT, COLUMN, ROW, MARGIN = 112, 34, 138, 58, 14


def imports() -> dict[str, set[str]]:
    """Return what each folder or module at the top of the package imports from the others."""
    imported: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if folder.startswith("_") or folder == "conftest":
            continue
        names = imported.setdefault(folder, set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module == "xlingtox":
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("xlingtox."):
                modules = [node.module.split(".")[1]]
            elif isinstance(node, ast.Import):
                modules = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("xlingtox.")]
            names.update(name for name in modules if not name.startswith("_") and name != folder)
    return {folder: names & set(imported) for folder, names in imported.items()}


def reduced(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Leave out the arrows that follow from others."""

    def reach(folder: str) -> set[str]:
        return edges[folder] | {far for near in edges[folder] for far in reach(near)}

    return {
        folder: {near for near in nears if not any(near in reach(between) for between in nears - {near})}
        for folder, nears in edges.items()
    }


def drawing() -> str:
    """Return the SVG."""
    edges = reduced(imports())
    if unplaced := sorted(set(edges) - set(PLACES)):
        sys.exit(f"give these a place in tutorials/drawing.py: {', '.join(unplaced)}")
    arrows = [_arrow(near, folder) for folder in PLACES if folder in edges for near in sorted(edges[folder])]
    boxes = [_box(folder) for folder in PLACES if folder in edges]
    right, bottom = (max(place[axis] for place in PLACES.values()) for axis in (0, 1))
    width, height = 2 * MARGIN + right * COLUMN + WIDTH, 2 * MARGIN + bottom * ROW + HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" font-family="sans-serif" font-size="15" text-anchor="middle">',
            "<title>The folders of xlingtox: an arrow leads from a folder to those that import it</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 8 4 0 8Z" fill="#444"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
            '<g fill="none" stroke="#444" stroke-width="1.5" marker-end="url(#tip)">',
            *arrows,
            "</g>",
            *boxes,
            "</svg>\n",
        ]
    )


def _corner(folder: str) -> tuple[int, int]:
    column, row = PLACES[folder]
    return MARGIN + column * COLUMN, MARGIN + row * ROW


def _box(folder: str) -> str:
    x, y = _corner(folder)
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#e8f1ee" stroke="#2f6f62"/>'
        f'<text x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 5}" fill="#111">{folder}</text>'
    )


def _arrow(start: str, end: str) -> str:
    """Return a line down, sideways, or with bends: long ways keep to columns without boxes, and to gaps of rows."""
    (x, y), (to_x, to_y) = _corner(start), _corner(end)
    middle, to_middle = x + WIDTH // 2, to_x + WIDTH // 2
    side = to_x + WIDTH if x > to_x else to_x
    if x == to_x:
        way = f"M{middle} {y + HEIGHT}V{to_y}"
    elif y == to_y:
        way = f"M{x if x > to_x else x + WIDTH} {y + HEIGHT // 2}H{side}"
    elif to_y - y > ROW or end == "cli":
        way = f"M{middle} {y + HEIGHT}V{to_y + HEIGHT // 2}H{side}"
    elif abs(to_x - x) > COLUMN:
        start_x = middle + (WIDTH // 3 if to_x > x else -(WIDTH // 3))
        way = f"M{start_x} {y + HEIGHT}V{to_y - (ROW - HEIGHT) // 2}H{to_middle}V{to_y}"
    else:
        way = f"M{middle} {y + HEIGHT}L{to_middle + (x - to_x) // 6} {to_y}"
    return f'<path d="{way}"/>'
