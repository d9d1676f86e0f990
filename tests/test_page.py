"""The daemon's page in a real browser: Chromium, headless. Skipped where there is none."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from conftest import BundleFactory
from peers import LOCAL, LONG, device_of

from scissionlite.offloader import EdgeServer
from scissionlite.offloader.edge import page_server

CHARTS = ["Latency by stage", "Requests", "Bytes", "Queue and devices"]
PAGE = Path(page_server.__file__).with_name("page.html")
HOSTILE = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt install chromium"
)


@pytest.fixture(scope="module")
def edge(make_bundle: BundleFactory) -> Iterator[EdgeServer]:
    bundle = make_bundle()
    with ExitStack() as opened:
        # So that there are samples soon.
        opened.enter_context(pytest.MonkeyPatch.context()).setattr(page_server, "INTERVAL", 0.1)
        started = EdgeServer(bundle, LOCAL, page=":*", name="Line <b>4</b>")
        opened.enter_context(started)
        devices = [
            opened.enter_context(device_of(started, bundle, name=name))
            for name in ("camera 1", HOSTILE)
        ]
        assert started._page is not None
        samples = started._page._history.samples
        until = time.monotonic() + LONG
        while sum(sample.latency is not None for sample in samples) < 5:
            assert time.monotonic() < until
            for device in devices:
                device.infer(np.zeros((32, 32, 3), np.uint8))
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def show(browser: Browser, edge: EdgeServer, width: int, *, dark: bool = False) -> None:
    """Open the page, and wait until it has its first numbers."""
    browser.console.clear()
    browser.open(edge.page, width=width, height=1500, dark=dark)
    ready = "document.readyState == 'complete' && !!document.querySelector('#tiles dd')"
    until = time.monotonic() + LONG
    while not browser.run(ready):
        assert time.monotonic() < until, browser.console
        time.sleep(0.02)


@needs_chromium
def test_the_page_shows_the_daemon_and_runs_nothing_that_a_device_says(
    edge: EdgeServer, browser: Browser
) -> None:
    show(browser, edge, 1280)
    assert browser.run("document.title") == "Line <b>4</b> · ScissionLite edge"
    assert browser.run("document.querySelectorAll('img, b b, main script').length") == 0
    text = " ".join(browser.run("document.body.innerText").split())
    assert f"{HOSTILE} at 127.0.0.1" in text
    assert "Line <b>4</b> Ready" in text
    assert "Devices 2 of 256" in text
    assert f"{edge.stats().served:,} in all" in text
    bundle = edge._loop.metrics.bundles[0].bundle
    assert f"tiny-1 split, TL 2x2 int8 · {bundle.id[:12]}" in text
    assert edge.endpoint in text
    assert "Nothing was refused since the start." in text
    headings = browser.run("[...document.querySelectorAll('h1, h2, h3')].map(h => h.innerText)")
    assert headings[1:] == ["The last minutes", *CHARTS, "Bundles", "Devices", "Links", "Refusals"]
    assert browser.run("document.querySelectorAll('polygon').length") >= 4  # the four stages
    count = "[...document.querySelectorAll('table')].filter(t => t.caption.innerText).length"
    assert browser.run(count) == 2
    # Each device's link as it measures it, which it tells with a heartbeat.
    rates = "(document.body.innerText.match(/[1-9][\\d.]* [kMG]?bit\\/s/g) || []).length"
    until = time.monotonic() + LONG
    while browser.run(rates) < 2:
        assert time.monotonic() < until, browser.run("document.body.innerText")
        time.sleep(0.1)
    assert browser.console == []  # no error of the script, nothing that the policy forbids


@needs_chromium
def test_an_inline_script_would_not_run(edge: EdgeServer, browser: Browser) -> None:
    show(browser, edge, 1280)
    planted = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.bad=1>')"
    browser.run(planted)
    assert browser.run("new Promise(r => setTimeout(() => r(window.bad), 300))") is None
    assert "Content Security Policy" in "".join(browser.console)


@needs_chromium
def test_a_chart_s_cursor_moves_by_the_keyboard(edge: EdgeServer, browser: Browser) -> None:
    show(browser, edge, 1280)
    browser.run("document.querySelector('svg').focus()")
    label = "document.querySelector('svg').getAttribute('aria-label')"
    assert re.fullmatch(
        r"Latency by stage over the last 1 min\. now: waiting .*", browser.run(label)
    )
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert re.search(r"\. \d\d:\d\d:\d\d: waiting (–|[\d.]+ ms), decode ", browser.run(label))
    assert browser.run("document.querySelectorAll('.cursor').length") == 1
    browser.press("Escape")
    assert ". now: waiting" in browser.run(label)


@needs_chromium
@pytest.mark.parametrize("width", [360, 390, 820, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_light_or_dark_and_fits_its_window(
    edge: EdgeServer, browser: Browser, width: int, dark: bool
) -> None:
    show(browser, edge, width, dark=dark)
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    # No text is wider than the card that holds it.
    wide = "[...document.querySelectorAll('.card *')].filter(e => e.scrollWidth > e.clientWidth + 1"
    wide += " && e.clientWidth && !e.closest('thead')).map(e => e.outerHTML)"
    assert browser.run(wide) == []
    pixels = np.asarray(browser.picture().convert("L"), dtype=np.float64)
    assert (pixels.mean() < 60) if dark else (pixels.mean() > 200)
    # Something is drawn all over, not only the ground.
    assert all(part.std() > 5 for part in np.array_split(pixels[:1000], 4))


@needs_chromium
def test_the_page_says_when_the_daemon_is_gone(
    make_bundle: BundleFactory, browser: Browser
) -> None:
    with EdgeServer(make_bundle(), LOCAL, page=":*") as edge:
        show(browser, edge, 1280)
    until = time.monotonic() + LONG
    while not browser.run("document.body.classList.contains('lost')"):
        assert time.monotonic() < until
        time.sleep(0.1)
    state = browser.run("document.getElementById('state').innerText")
    assert re.fullmatch(r"No answer since \d\d:\d\d:\d\d", state)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = PAGE.read_text()
    addresses = set(re.findall(r"""(?:https?:)?//[\w.-]+[^\s"'`)]*""", html))
    assert {each for each in addresses if not each.startswith("// ")} == {
        "http://www.w3.org/2000/svg"  # a namespace, which nobody asks for
    }
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {
        "data:,",
        "metrics",
        "status.json",
        "healthz",
        "readyz",
    }
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "style=",
    ):
        assert way not in html


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_that_wcag_asks_for() -> None:
    themes = re.findall(r":root \{(.*?)\}", PAGE.read_text(), re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", theme))
        for text, ground in (
            ("text", "card"),
            ("text", "ground"),
            ("muted", "card"),
            ("muted", "ground"),
            ("good", "good-ground"),
            ("bad", "bad-ground"),
            ("blue", "ground"),  # links
        ):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for drawn in ("blue", "amber", "violet", "teal", "red"):
            assert contrast(colours[drawn], colours["card"]) >= 2.5, drawn
