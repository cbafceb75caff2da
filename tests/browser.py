"""A real headless Chromium for the tests of the page; tests/debian.py installs it where it is missing.

It starts with a profile of its own and without anything that talks to a network by itself.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--force-color-profile=srgb", "--lang=en",
)  # fmt: skip


def missing() -> str:
    """Return why no browser can be driven here, or nothing."""
    if absent := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"no browser: {', '.join(absent)} missing"
    return "" if find_spec("selenium") else "no browser: selenium is not installed"


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """Run a browser within the body and yield selenium's driver."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        service = Service(executable_path=shutil.which("chromedriver"), log_output=subprocess.DEVNULL)
        driver = Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()
            service.stop()


def show(driver: Any, page: Path, width: int, height: int, dark: bool) -> None:
    """Open a page from its file in a window of that size inside, in dark or light colours."""
    emulated = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": emulated})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.resolve().as_uri())


def screenshot(page: Path, out: Path, width: int, height: int, dark: bool) -> None:
    """Write what a window of that size shows of a page as a PNG."""
    with running() as driver:
        show(driver, page, width, height, dark)
        out.write_bytes(driver.get_screenshot_as_png())
