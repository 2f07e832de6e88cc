"""Build the documentation's pages: `python tutorials/site/build.py [folder]`; without a folder, into build/site.

The pages are the guide, the notebooks as they are stored, and the docstrings. Every warning is an error. What is built
works from a folder, without a server and without the network.

Needs `pip install -e '.[docs]'`.
"""

import inspect
import re
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

import xlingtox as xt

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPOSITORY = "https://github.com/xlingtox/xlingtox/blob/main/"

_LINK = re.compile(r"(?<!!)(\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def stage(source: Path) -> None:
    """Copy what becomes a page into `source`, in the repository's own layout, so that links keep their meaning."""
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        _copy(path, source)
    for path in sorted((ROOT / "tutorials" / "guide").glob("*.md")):
        _copy(path, source)
    for path in (
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "assets").glob("*.png")),
        *sorted((ROOT / "assets").glob("*.svg")),
    ):
        _copy(path, source)
    for path in sorted(HERE.glob("**/*.md")):
        target = source / path.relative_to(HERE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text("utf-8"), "utf-8")
    (source / "api" / "xlingtox.md").write_text(_overview(), "utf-8")


def _overview() -> str:
    """A page of the package's own names, by the question that they answer."""
    lines = [
        "# xlingtox\n",
        "These names are at hand after `import xlingtox as xt`. Each stands on the page of the folder that holds it.\n",
    ]
    for group, folders in xt.GROUPS.items():
        lines.append(f"## {group}\n\n| Name | What it is |\n|---|---|")
        for folder, names in folders.items():
            for name in names:
                held = getattr(xt, name)
                target = f"xlingtox.{folder}.{name}"
                role = "mod" if inspect.ismodule(held) else "class" if inspect.isclass(held) else "func"
                link = f"{{py:{role}}}`xt.{name} <{target}>`"
                lines.append(f"| {link} | {_summary(held)} |")
        lines.append("")
    return "\n".join(lines)


def _summary(held: object) -> str:
    """The first sentence of a docstring, in one line."""
    text = " ".join((inspect.getdoc(held) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", text)[0].replace("|", "\\|")


def _copy(path: Path, source: Path) -> None:
    target = source / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".md", ".ipynb"):
        target.write_text(_linked(path, path.read_text("utf-8")), "utf-8")
    else:
        shutil.copyfile(path, target)


def _linked(path: Path, text: str) -> str:
    """Point links to files that are no pages to the repository, and links to the README to the start page."""

    def replaced(found: re.Match[str]) -> str:
        opening, target, anchor, closing = found.groups()
        if "://" in target or target.startswith(("mailto:", "#")):
            return found[0]
        place = (path.parent / target).resolve()
        if place == ROOT / "README.md":
            return f"{opening}{_upwards(path)}index.md{closing}"
        is_page = place.suffix in (".md", ".ipynb", ".png", ".svg") and not place.is_relative_to(ROOT / "tests")
        if is_page and place.is_file():
            return found[0]
        if not place.exists():
            raise SystemExit(f"{path.relative_to(ROOT)}: the link to {target} leads nowhere")
        return f"{opening}{REPOSITORY}{place.relative_to(ROOT)}{anchor or ''}{closing}"

    return _LINK.sub(replaced, text)


def _upwards(path: Path) -> str:
    return "../" * (len(path.relative_to(ROOT).parts) - 1)


def build(target: Path) -> int:
    """Build the pages into `target`; return 0 where all went well."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "pages")
        source.mkdir()
        stage(source)
        # `-W`: a warning is an error; `-n` is left out, since docstrings name things in backticks and not as roles.
        return build_main(["-W", "--keep-going", "-q", "-b", "html", "-c", str(HERE), str(source), str(target)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site")))
