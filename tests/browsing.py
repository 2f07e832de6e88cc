"""A page in a real browser: what went wrong on it, what it asked for, and what axe-core says of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe

_PATIENCE = 600_000
"""Milliseconds until a page is taken for one that hangs; a busy machine takes a minute for what takes a second."""

DRAWN = """() => {
  const plots = [...document.querySelectorAll('.plot')];
  return plots.length > 0 && plots.every((plot) => plot.querySelector('.main-svg'));
}"""


class Visit:
    """A page that was opened.

    Attributes:
        page: Playwright's.
        faults: errors and warnings of the console, exceptions and dialogs.
        requests: whatever it asked for beside itself.
    """

    def __init__(self, page: Any, file: Path) -> None:
        self.page, self.faults, self.requests = page, [], []  # type: ignore[var-annotated]
        page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on("request", lambda asked: self.requests.append(asked.url) if asked.url != file.as_uri() else None)
        page.goto(file.as_uri())

    def _dismiss(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def drawn(self) -> list[Any]:
        """Waits until every figure is drawn, and returns for each the traces that plotly shows."""
        self.page.wait_for_function(DRAWN)
        return self.page.evaluate("[...document.querySelectorAll('.plot')].map((plot) => plot.data)")

    def accessibility_faults(self, within: str | None = None) -> list[str]:
        """Faults that axe-core calls serious or critical, with everything unfolded; `within` a selector or anywhere."""
        self.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        found = Axe().run(self.page, within).response["violations"]
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


@contextlib.contextmanager
def visiting(browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> Iterator[Visit]:
    with contextlib.closing(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)) as own:
        own.set_default_timeout(_PATIENCE)
        yield Visit(own.new_page(), file)
