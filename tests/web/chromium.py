"""Chromium without a window, driven by Selenium, and what its console said."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# Nothing of its own over the network, and none of a desktop's: it only shows the pages that it is given.
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --no-proxy-server "
    "--disable-background-networking --disable-component-update --disable-sync --disable-extensions --hide-scrollbars "
    "--force-device-scale-factor=1"
)


def launch(profile: Path) -> webdriver.Chrome:
    """A Chromium with one tab. profile: a new, empty folder for what it writes.

    Both programs are those on the PATH: Selenium, left to itself, would download some.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(20)
    driver.set_script_timeout(20)
    return driver


def screen(
    driver: webdriver.Chrome, width: int, height: int, *, touch: bool = False, dark: bool = False, still: bool = False
) -> None:
    """The tab's page is so many pixels wide and high, on a touch screen or not; its reader prefers dark, less motion."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
    features = {
        "prefers-color-scheme": "dark" if dark else "light",
        "prefers-reduced-motion": "reduce" if still else "",
    }
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": name, "value": value} for name, value in features.items()]}
    )


def complaints(driver: webdriver.Chrome, expected: Iterable[str] = ()) -> list[str]:
    """The errors in the console since the last look, without those that match a regular expression of `expected`."""
    said = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in said if not any(re.search(pattern, message) for pattern in expected)]
