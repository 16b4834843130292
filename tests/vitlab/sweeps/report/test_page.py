"""The report of a sweep in a real browser: it loads, sorts and filters, wide and narrow, light and dark."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from vitlab.sweeps.ledger import Direction, Job, Status, Sweep
from vitlab.sweeps.report.page import format_mean_std, format_number, pareto_configurations, write_report
from vitlab.sweeps.report.table import Configuration, MeanStd

NOTHING = "\N{EN DASH}"
EVIL = "<img src=x onerror=\"document.title='broken'\">&amp;"
COMMAND = f"python src/train.py -m optimizer.lr=1e-3,3e-3 model=a,'{EVIL}' seed=0,1"


def write_metrics(folder: Path, final: float) -> None:
    with (folder / "metrics.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["step", "train/loss", "val/loss", "val/acc", "images"])
        for step in range(1, 6):
            loss = final + math.exp(-step)
            writer.writerows([[step, loss, "", "", 64 * step], [step, "", loss, 1 - loss / 4, 64 * step]])


def make_jobs(folder: Path) -> list[Job]:
    """2 rates x 2 models x 2 seeds, one of which crashed, with files as a run leaves them."""
    jobs = []
    for k in range(8):
        lr, model, seed = ("0.001", "0.003")[k // 4], ("a", EVIL)[k // 2 % 2], str(k % 2)
        run = folder / str(k)
        run.mkdir()
        loss = 0.5 - 0.1 * (k // 4) + 0.05 * (k // 2 % 2) + 0.01 * (k % 2)
        write_metrics(run, loss)
        status: Status = "crashed" if k == 3 else "finished"
        scores = {
            "val/loss": loss,
            "val/acc": 1 - loss / 2,
            "test/acc": 1 - loss,
            "seconds": 9.0 + k,
            "parameters": 1000,
        }
        results: dict[str, Any] = {"command": f"python src/train.py optimizer.lr={lr} seed={seed}", "commit": "c0ffee"}
        results |= {"error": f"ValueError: {EVIL}"} if k == 3 else {**scores, "images_per_second": 500.0 * (k + 1)}
        results |= {"versions": {"torch": "2.14.1"}, "host": "here", "device": "cpu", "devices": 1}
        choices = {"optimizer.lr": lr, "model": model, "seed": seed}
        jobs.append(Job(f"job{k}", run, choices, status, 3 if k == 3 else 1, results))
    return jobs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweep")
    return Sweep(folder, f"digits {EVIL}", COMMAND, {"val/loss": "min"}, make_jobs(folder))


@pytest.fixture(scope="module")
def page(sweep: Sweep) -> Path:
    return write_report(sweep, sweep.folder / "report")


def open_page(browser: webdriver.Chrome, page: Path, *, width: int = 1280, scheme: str = "light") -> webdriver.Chrome:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    return browser


def messages(browser: webdriver.Chrome, log: str = "browser") -> list[Any]:
    """The messages of the console, or of another of the browser's logs, since the last call."""
    return list(browser.get_log(log))  # type: ignore[no-untyped-call]


def rows(browser: webdriver.Chrome, table: str = "configurations") -> list[WebElement]:
    return [row for row in browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr") if row.is_displayed()]


def column(browser: webdriver.Chrome, number: int, table: str = "configurations") -> list[str]:
    return [row.find_elements(By.TAG_NAME, "td")[number].text for row in rows(browser, table)]


def test_it_loads_without_an_error_or_a_request(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    assert messages(browser) == []
    asked = re.findall(
        r'"requestWillBeSent".*?"url":"([^"]{4,60})', str([e["message"] for e in messages(browser, "performance")])
    )
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
    assert browser.find_element(By.TAG_NAME, "h1").text == f"digits {EVIL}"
    assert browser.title == f"digits {EVIL} · vitlab sweep", "a name is a text, whatever it holds"
    assert browser.find_elements(By.CSS_SELECTOR, "img:not([src^='data:'])") == []


def test_it_has_the_table_best_first_and_all_other_parts(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    assert column(browser, 1) == ["0.003", "0.003", "0.001", "0.001"]
    assert column(browser, 3) == ["2", "2", "2", "1 of 2"]
    assert column(browser, 4) == ["0.4050 ± 0.0071", "0.4550 ± 0.0071", "0.5050 ± 0.0071", "0.55"]
    assert column(browser, 5)[0] == "59.50 ± 0.71 %"
    headings = [h.text for h in browser.find_elements(By.TAG_NAME, "h2")]
    wanted = ["Results", "Curves", "What matters", "Accuracy and cost", "What did not finish", "Jobs"]
    assert headings == [*wanted, "How it was made"]
    charts = {svg.get_attribute("aria-label") for svg in browser.find_elements(By.TAG_NAME, "svg")}
    assert {
        "val/loss ↓ against images seen",
        "val/acc ↑ against images seen",
        "train/loss ↓ against images seen",
    } <= charts
    assert {"val/loss ↓ against optimizer.lr", "val/loss ↓ against model"} <= charts
    assert "test/acc ↑ against seconds a job ↓" in charts
    assert "ValueError: " + EVIL in browser.find_element(By.CLASS_NAME, "failures").text
    assert "Tried 3 times" in browser.find_element(By.CLASS_NAME, "failures").text
    created = browser.find_element(By.CSS_SELECTOR, "[aria-labelledby=made]").text
    assert COMMAND in created
    assert "c0ffee" in created
    assert "torch 2.14.1" in created


def test_a_heading_sorts_numbers_as_numbers_and_back(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    seconds = next(h for h in browser.find_elements(By.CSS_SELECTOR, "#all-jobs th") if h.text == "seconds")
    index = browser.find_elements(By.CSS_SELECTOR, "#all-jobs th").index(seconds)
    for direction, order in (("ascending", [0, 1, 2, 4, 5, 6, 7]), ("descending", [7, 6, 5, 4, 2, 1, 0])):
        seconds.find_element(By.TAG_NAME, "button").click()
        assert seconds.get_attribute("aria-sort") == direction
        assert column(browser, index, "all-jobs")[-1] == NOTHING, "what is missing stays last"
        assert column(browser, 0, "all-jobs")[:-1] == [f"job{k}" for k in order]
    assert messages(browser) == []


def test_a_filter_applies_to_tables_and_charts(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    lines = "svg[aria-label='val/loss ↓ against images seen'] .line:not(.off)"
    assert len(browser.find_elements(By.CSS_SELECTOR, lines)) == 4
    box = browser.find_element(By.ID, "filter")
    box.send_keys("LR=0.003 onerror")
    assert (len(rows(browser)), len(rows(browser, "all-jobs"))) == (1, 2)
    assert len(browser.find_elements(By.CSS_SELECTOR, lines)) == 1
    assert browser.find_element(By.ID, "shown").text == "1 of 4 shown"
    box.clear()
    box.send_keys("nothing like it")
    assert browser.find_element(By.ID, "shown").text == "0 of 4 shown"
    box.clear()
    box.send_keys(" ")
    browser.find_element(By.CSS_SELECTOR, "select[data-key='optimizer.lr'] option:nth-child(2)").click()
    assert column(browser, 1) == ["0.001", "0.001"]
    assert messages(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_it_fits_every_width_and_can_be_read_in_both_schemes(
    browser: webdriver.Chrome, page: Path, width: int, scheme: str
) -> None:
    open_page(browser, page, width=width, scheme=scheme)
    sizes = browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth, e.scrollHeight]"
    )
    assert sizes[0] <= sizes[1] <= width, "the page itself does not scroll sideways"
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 50
    assert {text: ratio for text, ratio in contrasts if ratio < 4.5} == {}
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")


# WCAG's contrast of each text with the first background behind it
CONTRASTS = """
const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                     return .2126 * r + .7152 * g + .0722 * b };
const numbers = c => c.match(/[\\d.]+/g).map(Number);
const found = [];
for (const e of document.querySelectorAll('main *')) {
  const own = [...e.childNodes].filter(n => n.nodeType === 3 && n.data.trim()).map(n => n.data.trim()).join(' ');
  if (!own || e.closest('title') || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), inChart = e.closest('svg');
  let behind = e; while (behind) {
    const c = numbers(getComputedStyle(behind).backgroundColor);
    if (c.length < 4 || c[3] > 0) break; behind = behind.parentElement; }
  const a = light(numbers(inChart ? style.fill : style.color));
  const b = light(numbers(getComputedStyle(behind).backgroundColor));
  found.push([own, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
}
return found;
"""


def test_every_table_and_field_has_a_name(browser: webdriver.Chrome, page: Path) -> None:
    open_page(browser, page)
    assert {th.get_attribute("scope") for th in browser.find_elements(By.TAG_NAME, "th")} == {"col"}
    fields = browser.find_elements(By.CSS_SELECTOR, "input, select, button, img, svg, [role=region]")
    assert [field.get_attribute("outerHTML") for field in fields if not field.accessible_name] == []
    ids = [e.get_attribute("id") for e in browser.find_elements(By.CSS_SELECTOR, "[id]")]
    assert len(ids) == len(set(ids))


def test_the_page_is_one_file_next_to_the_tables(page: Path) -> None:
    assert sorted(file.name for file in page.parent.iterdir()) == ["index.html", "jobs.csv", "results.csv"]
    text = page.read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", text) == []
    assert "default-src 'none'" in text
    assert "<img src=x" not in text
    with (page.parent / "results.csv").open(newline="") as lines:
        assert [row["n"] for row in csv.DictReader(lines)] == ["2", "2", "2", "1"]


@pytest.mark.parametrize("status", ["waiting", "running", "crashed"])
def test_a_sweep_in_which_nothing_has_finished_has_a_page_too(
    browser: webdriver.Chrome, tmp_path: Path, status: Status
) -> None:
    job = Job("a", tmp_path / "a", {"seed": "0"}, status, 1, {})
    open_page(browser, write_report(Sweep(tmp_path, "s", "c", {"val/acc": "max"}, [job]), tmp_path / "report"))
    assert "No job has finished yet" in browser.find_element(By.TAG_NAME, "main").text
    assert messages(browser) == []


def test_one_job_alone_and_many_configurations_have_a_page(
    browser: webdriver.Chrome, sweep: Sweep, tmp_path: Path
) -> None:
    alone = Sweep(tmp_path, "one", "c", {"val/loss": "min"}, [Job(**{**vars(sweep.jobs[0]), "choices": {}})])
    open_page(browser, write_report(alone, tmp_path / "one"))
    assert column(browser, 0) == ["1"]
    jobs = []
    for k in range(60):
        results = {**sweep.jobs[k % 3].results, "val/loss": 1 + k / 60, "images_per_second": float(k % 7)}
        jobs.append(
            Job(f"j{k}", sweep.jobs[0].folder, {"optimizer.lr": f"{1e-4 * 1.1**k:.3g}"}, "finished", 1, results)
        )
    objectives: dict[str, Any] = {"val/loss": "min", "images_per_second": "max"}
    open_page(browser, write_report(Sweep(tmp_path, "many", "c", objectives, jobs), tmp_path / "many"))
    assert len(rows(browser)) == 60
    marked = [k for k, text in enumerate(column(browser, 0)) if "◆" in text]
    assert marked == [0, 1, 2, 3, 4, 5, 6], "nothing is better than these in both"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".legend li")) == 8
    points = browser.find_elements(By.CSS_SELECTOR, "circle.point[data-c='3'], circle.point[data-c='30']")
    webdriver.ActionChains(browser).move_to_element(points[0]).perform()
    near = {mark.get_attribute("data-c") for mark in browser.find_elements(By.CSS_SELECTOR, "tr.near, .m.near")}
    assert near == {points[0].get_attribute("data-c")}, "what the pointer is on is marked in tables and charts"
    assert messages(browser) == []


def test_a_page_of_many_jobs_is_small(tmp_path: Path) -> None:
    write_metrics(tmp_path, 0.5)
    results = {"val/loss": 0.5, "val/acc": 0.5, "test/acc": 0.5, "seconds": 9.5, "parameters": 1000}
    jobs = [
        Job(f"{k:012}", tmp_path, {"lr": f"{1 + k / 7:.6g}"}, "finished", 1, results | {"val/loss": 1.1 + k / 300})
        for k in range(400)
    ]
    page = write_report(Sweep(tmp_path, "many", "c", {"val/loss": "min"}, jobs), tmp_path / "report")
    assert page.stat().st_size < 3e6 * 400 / 1000, "3 MB for a thousand configurations"


def test_a_job_is_linked_to_its_own_page(browser: webdriver.Chrome, sweep: Sweep, tmp_path: Path) -> None:
    job = Job(**{**vars(sweep.jobs[0]), "folder": tmp_path / "a 100% #1"})
    (job.folder / "report").mkdir(parents=True)
    (job.folder / "report" / "index.html").write_text("<title>the job</title>")
    open_page(browser, write_report(Sweep(tmp_path, "s", "c", {"val/loss": "min"}, [job]), tmp_path / "report"))
    assert len(browser.find_elements(By.LINK_TEXT, job.id)) == 2, "as the best, and in the table"
    browser.find_elements(By.LINK_TEXT, job.id)[0].click()
    assert browser.title == "the job"


def test_of_several_objectives_those_that_nothing_is_better_than_in_all() -> None:
    points = [(0.9, 10.0), (0.8, 20.0), (0.7, 15.0), (0.9, 5.0), (0.8, 20.0)]
    rows = [Configuration({}, [], {"a": MeanStd(a, None), "b": MeanStd(b, None)}) for a, b in points]
    rows.append(Configuration({}, [], {"a": MeanStd(1.0, None)}))
    directions: list[Direction] = ["max", "min"]
    highest, lowest = (Sweep(Path(), "s", "", {"a": end, "b": end}, []) for end in directions)
    assert pareto_configurations(highest, rows) == {0, 1, 4}
    assert pareto_configurations(lowest, rows) == {2, 3}
    assert pareto_configurations(highest, rows[-1:]) == set()


def test_numbers_have_their_significant_digits() -> None:
    shown = [
        format_mean_std(MeanStd(0.98333, 0.0046), "test/acc"),
        format_mean_std(MeanStd(0.76949, 0.0131), "val/loss"),
        format_mean_std(MeanStd(5703.2, 71.8), "images_per_second"),
        format_mean_std(MeanStd(25994.0, 0.0), "parameters"),
        format_mean_std(MeanStd(10.21, None), "seconds"),
        format_mean_std(None, "seconds"),
    ]
    assert shown == ["98.33 ± 0.46 %", "0.769 ± 0.013", "5,703 ± 72", "25,994", "10.2", NOTHING]
    assert [format_number(v) for v in (0.000123456, 3, 12345.6)] == ["0.0001235", "3", "12,346"]
