"""The documentation: built without a warning, every link leads somewhere, and every page reads in a real browser."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import visiting

import xlingtox as xt

ROOT = Path(__file__).resolve().parents[2]

READABLE = """() => {
  const colour = (style) => getComputedStyle(document.body)[style];
  return [colour('color'), colour('backgroundColor')];
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, as the command in the guide builds them."""
    pytest.importorskip("furo")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "tutorials" / "site" / "build.py"), str(target)]
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    built = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | more, timeout=3600)
    assert built.returncode == 0, built.stderr[-4000:]
    return target


class _Page(HTMLParser):
    """The links, the anchors and the pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.without_words: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = dict(attributes)
        self.anchors.update(value for value in (held.get("id"), held.get("name")) if value)
        self.links += [value for value in (held.get("href"), held.get("src")) if value]


def pages(site: Path) -> Iterator[Path]:
    yield from sorted(path for path in site.rglob("*.html") if "_modules" not in path.parts)


def test_every_link_leads_somewhere(site: Path) -> None:
    read = {path.resolve(): _Page(path) for path in sorted(site.rglob("*.html"))}
    lost = []
    for path, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in read and anchor not in read[target].anchors):
                lost.append(f"{path.relative_to(site.resolve())}: {link}")
    assert lost == []


def test_every_public_name_has_a_place(site: Path) -> None:
    anchors = {anchor for path in (site / "api").glob("*.html") for anchor in _Page(path).anchors}
    expected = [
        f"xlingtox.{folder}.{name}"
        for groups in xt.GROUPS.values()
        for folder, names in groups.items()
        for name in names
    ]
    modules = {f"module-{name}" for name in expected}
    assert [name for name in expected if name not in anchors and f"module-{name}" not in anchors & modules] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_reads_in_a_browser(site: Path, browser, scheme: str) -> None:
    """On a telephone's width nothing is cut; no script fails, and nothing comes from the network."""
    faults = []
    for path in pages(site):
        with visiting(browser, path, width=390, scheme=scheme) as visit:
            name = path.relative_to(site)
            faults += [f"{name}: {fault}" for fault in visit.faults]
            faults += [f"{name}: asks for {url}" for url in visit.requests if not url.startswith(("file:", "data:"))]
            if visit.overflows():
                faults.append(f"{name}: wider than its window")
            text, ground = (
                sum(map(int, value.strip("rgba()").split(",")[:3])) for value in visit.page.evaluate(READABLE)
            )
            if (text > ground) != (scheme == "dark"):
                faults.append(f"{name}: not {scheme}")
    assert faults == []


def test_the_search_finds_without_a_server(site: Path, browser) -> None:
    with visiting(browser, site / "index.html") as visit:
        visit.page.goto((site / "search.html").as_uri() + "?q=perplexity")
        visit.page.locator("#search-results li a").first.wait_for()
        assert "perplexity" in visit.page.locator("#search-results").inner_text().lower()
