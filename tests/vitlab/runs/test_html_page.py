"""A page of tables and pictures in a real browser: no request, no error, no text that becomes markup, any width."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from vitlab.runs.html_page import Page

EVIL = "<img src=x onerror=\"document.title='broken'\">&amp;{{ 7 * 7 }}"


def picture(color: str = "navy") -> bytes:
    Image.new("RGB", (800, 300), color).save(file := io.BytesIO(), "png")
    return file.getvalue()


def messages(browser: webdriver.Chrome, log: str = "browser") -> list[Any]:
    return list(browser.get_log(log))  # type: ignore[no-untyped-call]


def color_of(browser: webdriver.Chrome, name: str) -> Any:
    script = f"return getComputedStyle(document.querySelector('{name}')).backgroundColor"
    return browser.execute_script(script)


@pytest.mark.parametrize("width", [1280, 390])
def test_every_text_is_a_text_and_nothing_is_requested(browser: webdriver.Chrome, tmp_path: Path, width: int) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    page = Page(EVIL, "vitlab evaluation")
    page.add_text(EVIL)
    page.add_section(EVIL)
    page.add_table(["class", EVIL, "f1"], [[EVIL, "b", 0.98765], ["long " * 30, None, float("nan")], ["c", 3, 7]])
    page.add_picture(tmp_path / "a.png", EVIL)
    page.add_picture(picture("teal"), "from bytes")
    page.write(tmp_path / "below" / "index.html")

    backgrounds = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((tmp_path / "below" / "index.html").as_uri())
        backgrounds.append(color_of(browser, "body"))
    assert backgrounds == ["rgb(251, 251, 249)", "rgb(19, 21, 23)"]
    assert messages(browser) == []
    sent = [m["message"] for m in messages(browser, "performance") if '"Network.requestWillBeSent"' in m["message"]]
    assert sent
    assert all('"url":"file:' in m or '"url":"data:' in m for m in sent)
    assert browser.title == f"{EVIL} · vitlab evaluation"
    assert browser.find_element(By.TAG_NAME, "h1").text == EVIL
    assert browser.find_element(By.TAG_NAME, "h2").text == EVIL
    cells = [[td.text for td in tr.find_elements(By.TAG_NAME, "td")] for tr in browser.find_elements(By.TAG_NAME, "tr")]
    assert cells[1] == [EVIL, "b", "0.9877"]
    assert cells[2][1:] == ["\N{EN DASH}", "\N{EN DASH}"], "what is missing isn't 0"
    assert cells[3] == ["c", "3", "7"]
    images = browser.find_elements(By.TAG_NAME, "img")
    assert [image.get_property("naturalWidth") for image in images] == [800, 800]
    assert images[0].get_attribute("alt") == EVIL
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) == 0, "no wider than the screen"
