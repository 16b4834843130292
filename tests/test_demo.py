"""The demo in a real browser: a real upload, its classes and maps, and no request to another machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import demo
from conftest import SRC

pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture
def address(twins: list[Path], tmp_path: Path) -> Iterator[str]:
    """The page of a run, which takes uploads of at most one megabyte."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, str(SRC / "demo.py"), f"run={twins[0]}", f"port={port}"]
    log = (tmp_path / "log").open("w")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    process = subprocess.Popen([*line, "max_megabytes=1"], stdout=log, stderr=log, cwd=tmp_path, env=environment)
    try:
        for _ in range(240):
            with socket.socket() as client:
                if process.poll() is not None or client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def hosts(browser: webdriver.Chrome) -> set[str]:
    """The hosts to which the page has sent requests."""
    messages: list[Any] = browser.get_log("performance")  # type: ignore[no-untyped-call]
    events = [json.loads(entry["message"])["message"] for entry in messages]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url.split("/")[2].split(":")[0] for url in urls if url.startswith(("http", "ws"))}


def test_an_uploaded_image_has_classes_and_maps(browser: webdriver.Chrome, address: str, tmp_path: Path) -> None:
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "photo.png")
    Image.effect_noise((2000, 2000), 90).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 2**20
    wait = WebDriverWait(browser, 60)
    browser.get(address)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    upload = browser.find_elements(By.CSS_SELECTOR, "input[type=file]")[0]
    assert upload.get_attribute("accept") == "image/*"
    upload.send_keys(str(tmp_path / "large.png"))
    wait.until(
        lambda b: "exceed the maximum allowed size of 1.0 mb" in b.find_element(By.TAG_NAME, "body").text.lower()
    )
    browser.get(address)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    browser.find_elements(By.CSS_SELECTOR, "input[type=file]")[0].send_keys(str(tmp_path / "photo.png"))
    wait.until(lambda b: b.find_element(By.TAG_NAME, "body").text.count("%") == 5)
    attention = source(browser)
    radios = browser.find_elements(By.CSS_SELECTOR, "input[type=radio]")
    next(radio for radio in radios if radio.get_attribute("value") == "relevance").click()
    wait.until(lambda b: source(b) not in ("", attention))
    shown = [str(image.get_attribute("src")).rpartition("/")[2] for image in browser.find_elements(By.TAG_NAME, "img")]
    assert {f"{number}.png" for number in range(demo.EXAMPLES)} <= {*shown}
    assert hosts(browser) == {"127.0.0.1"}


def source(browser: webdriver.Chrome) -> str:
    """The address of the map's picture."""
    sources = [str(picture.get_attribute("src")) for picture in browser.find_elements(By.CSS_SELECTOR, "img")]
    return next((source for source in sources if source.endswith("/image.png")), "")


def test_without_gradio_the_demo_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["demo.py", "run=timm:vit_tiny_patch16_224"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "- the demo needs Gradio; install it with pip install 'vitlab[demo]'" in capsys.readouterr().err
