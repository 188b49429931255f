"""A real browser without a screen, in which a page that complains or asks the network for anything fails the test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Dialog, Page

__all__ = ["DESKTOP", "PHONE", "Browser", "launched", "overflow"]

PHONE, DESKTOP = (390, 844), (1280, 900)  # CSS pixels
NAMES = ("chromium", "chromium-browser", "google-chrome")
LOCAL = ("file:", "data:", "about:", "blob:")


class Browser:
    """Opens pages and keeps what is wrong with them.

    Attributes:
        complaints: what is written on the console, scripts that failed, requests over the network, dialogs.
    """

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        self.complaints: list[str] = []

    @contextmanager
    def open(
        self,
        place: Path | str,
        size: tuple[int, int] = DESKTOP,
        scheme: Literal["light", "dark"] = "light",
        forgive: tuple[str, ...] = (),
    ) -> Iterator[Page]:
        """A page; with the size of a phone it is one, with touch. Fails if the page complains meanwhile.

        Args:
            place: a file, or the address of a server on this machine, which alone the page may then ask.
            size: of the window, in CSS pixels.
            scheme: the colours that the reader prefers.
            forgive: what complaints begin with that belong to the test.
        """
        address = place if isinstance(place, str) else place.absolute().as_uri()
        allowed = (*LOCAL, address) if address.startswith("http://127.0.0.1:") else LOCAL
        phone = size == PHONE
        context = self._chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=phone, is_mobile=phone
        )
        try:
            page = context.new_page()
            page.set_default_timeout(10_000)
            page.on("console", lambda said: self._complain(f"console {said.type}", said.text))
            page.on("pageerror", lambda error: self._complain("script", str(error)))
            page.on("dialog", self._dismiss)
            page.on("request", lambda request: self._ask(request.url, allowed))
            page.on("requestfailed", lambda request: self._complain("failed", request.url))
            page.goto(address)
            yield page
            assert [said for said in self.complaints if not said.startswith(forgive)] == []
        finally:
            context.close()

    def _complain(self, kind: str, what: str) -> None:
        self.complaints.append(f"{kind}: {what}")

    def _ask(self, address: str, allowed: tuple[str, ...]) -> None:
        if not address.startswith(allowed):
            self._complain("network", address)

    def _dismiss(self, dialog: Dialog) -> None:
        self._complain("dialog", dialog.message)
        dialog.dismiss()


@contextmanager
def launched() -> Iterator[Browser]:
    """Starts the machine's Chromium; skips the test where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright comes with: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium on the PATH. On Debian install it with: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        # In containers, where tests run as root, its sandbox cannot be had; the pages are the tests' own.
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()


def overflow(page: Page) -> list[str]:
    """What makes a page wider than its window: empty if it has no horizontal scrollbar."""
    assert page.viewport_size is not None
    # Not the root's own width, which a phone lets grow with what lies in it.
    found: list[str] = page.evaluate(
        """width => document.documentElement.scrollWidth <= width ? [] :
            [...document.querySelectorAll("body, body *")]
                .filter(each => each.getBoundingClientRect().right > width)
                .map(each => each.outerHTML.slice(0, 100))""",
        page.viewport_size["width"],
    )
    return found
