"""The page in a real browser: draws, sorts, steps through traces, asks for nothing, and shows hostile text as text."""

import json
import shutil
import time

import numpy as np
import pytest

from mixdistill.diagnostics.inspection import inspect, plain
from mixdistill.reports.page import render, write
from mixdistill.reports.pages import inspection_sections, write_inspection
from mixdistill.reports.run_data import Run
from mixdistill.reports.run_page import study_sections
from mixdistill.reports.viewer import trace_views
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import train_bpe
from mixdistill.traces.trace import Step, Trace, Verdict

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium with its chromedriver on the path", allow_module_level=True)

HOSTILE = (
    '<script>window.hacked = 1</script></div><img src="http://127.0.0.1:9/x" onerror="window.hacked = 2"> & \u2028 '
    '</title><a href="http://127.0.0.1:9/y">link</a>'
)
TEACHERS = ("ann", "bob", f"cid{HOSTILE}")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An inspection of three teachers, one with a hostile name and hostile traces, half of the traces scored."""
    folder = tmp_path_factory.mktemp("page")
    traces = [
        Trace(
            f"p{i}{HOSTILE if i == 0 else ''}",
            f"What is {i}? {HOSTILE}",
            (Step(f"Wait, {i}. {HOSTILE}\n"), Step(f"So it is {i * 3}.\n"), Step(f"The answer is {i}.")),
            str(i),
            teacher,
            Verdict.CORRECT if (i + k) % 3 else Verdict.WRONG,
        )
        for i in range(6)
        for k, teacher in enumerate(TEACHERS)
    ]
    shards = prepare_traces(traces, folder / "shards", tokenizer=train_bpe([t.prompt + t.text for t in traces], 300))
    random = np.random.default_rng(0)
    fields = {}
    for number in range(6):
        size = len(shards[number].tokens) - shards[number].num_prompt
        surprisal = random.exponential(2, size).astype(np.float32)
        fields[number] = {"label_logprob": -surprisal, "confidence": random.uniform(5, 15, size).astype(np.float32)}
    found = with_student(plain(inspect(shards)))
    views = trace_views(shards, range(8), fields)
    title, about = f"page {HOSTILE}", f"about {HOSTILE}"
    write(folder / "page.html", render(title, HOSTILE, inspection_sections(found), views, about))
    write_inspection(found, shards, folder / "plain.html")
    return folder / "page.html"


def with_student(found: dict) -> dict:
    """What a student would add, made up."""
    estimate = {"value": 1.0, "low": 0.9, "high": 1.1, "count": 6}
    passage = {"problem": "p", "before": HOSTILE, "writes": HOSTILE, "student": HOSTILE}
    torn = {
        **dict.fromkeys(("undecidable_late", "undecidable", "disagreement", "decodability"), 0.25),
        "anchor": "ann",
        "verdict": "conflict",
        "conflict": True,
        "profile": [{"start": 0.0, "stop": 0.5, "undecidable": 0.1}, {"start": 0.5, "stop": 1.0, "undecidable": None}],
        "passages": [{**passage, "probability": 0.01, "student_probability": 0.9}],
        "second_opinion": {"score": 0.5},
    }
    for name, row in found["teachers"].items():
        row["measures"] = {"grape": estimate, "rank_surprisal_ratio": estimate}
        row["undecidable"] = None if name == "ann" else torn
    square = [[1.0, None, -0.5]] * 3
    found["pairs"] |= {"gradient_cosine": square, "gradient_conflict_rate": square}
    student = {"name": HOSTILE, "traces": 18, "anchor": "ann", "anchor_content_nll": 0.1, "anchor_is_learned": True}
    gain = {"over": "ann", "mean": -0.1, "low": -0.2, "high": 0.0}
    pilot = {"teachers": TEACHERS, "accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}, "own_nll": {TEACHERS[2]: 1.5}}
    pilots = [{**pilot, "gain": gain, "learned": False, "tokens": 100, "seconds": 1.0}]
    found["pairs"] |= dict.fromkeys(("undecidable_late", "undecidable", "disagreement", "decodability"), square)
    others = {name: torn for name in TEACHERS if name != "ann"}
    anchors = [
        {"anchor": "ann", "content_nll": 0.1, "learned": True, "tokens": 100, "seconds": 1.0, "others": others},
        {"anchor": TEACHERS[2], "content_nll": 3.0, "learned": False, "tokens": 100, "seconds": 1.0, "others": {}},
    ]
    return {**found, "student": student, "pilots": pilots, "pairwise": anchors}


def opened(browser, page, width: int = 1280, dark: bool = False):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get(page.as_uri())
    wait(browser, "return document.documentElement.dataset.ready === 'yes'")
    return browser


def wait(browser, script: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.05)


def draw_all(browser) -> None:
    browser.execute_script("document.querySelectorAll('.plot').forEach((box) => draw(box))")
    wait(browser, "return [...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")


def requests(browser) -> list[str]:
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        f"return [...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
    )


def choose(browser, id: str, value: str) -> None:
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        id,
        value,
    )


def test_draws_everything_and_asks_for_nothing(browser, page):
    opened(browser, page)
    draw_all(browser)
    assert browser.execute_script("return document.querySelectorAll('.plot').length") >= 3
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]


def test_text_of_traces_is_never_markup(browser, page):
    opened(browser, page)
    draw_all(browser)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.images.length") == 0
    links = browser.execute_script(
        "return [...document.querySelectorAll('a')].map((a) => a.getAttribute('href') ?? '')"
    )
    assert all(link.startswith("#") for link in links)
    assert browser.title == f"page {HOSTILE}".replace("\u2028", " ") or browser.title.startswith("page <script>")
    assert any(HOSTILE in text for text in texts(browser, "#trace span"))
    assert any("window.hacked" in text for text in texts(browser, "li code"))
    assert " + ".join(TEACHERS) in texts(browser, "tbody th")
    assert HOSTILE in "".join(texts(browser, "#trace"))
    assert f"cid{HOSTILE}" in texts(browser, "tbody th")
    assert browser.execute_script("return document.querySelectorAll('main > section').length") >= 5
    assert "<script>window.hacked" not in page.read_text()


def test_tables_sort(browser, page):
    opened(browser, page)
    first = "return [...document.querySelector('table').tBodies[0].rows].map((r) => r.children[{}].textContent)"
    heads = texts(browser, "table:first-of-type thead th")
    column = heads.index("right")
    click = f"document.querySelectorAll('table')[0].querySelectorAll('thead th button')[{column}].click()"
    shares = [float(text.strip("%")) for text in browser.execute_script(first.format(column))]
    browser.execute_script(click)
    down = [float(text.strip("%")) for text in browser.execute_script(first.format(column))]
    assert down == sorted(shares, reverse=True)
    browser.execute_script(click)
    assert [float(text.strip("%")) for text in browser.execute_script(first.format(column))] == sorted(shares)
    assert (
        browser.execute_script("return document.querySelector('th[aria-sort]').getAttribute('aria-sort')")
        == "ascending"
    )
    browser.execute_script(click.replace(f"[{column}].click", "[0].click"))
    names = browser.execute_script(first.format(0))
    assert names == sorted(names)
    assert browser.execute_script("return document.querySelectorAll('th[aria-sort]').length") == 1


def test_trace_viewer(browser, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    about = browser.find_element(By.ID, "about-trace")
    assert about.text.startswith("1 of 8: ann")
    viewer = browser.find_element(By.ID, "viewer")
    viewer.send_keys(Keys.ARROW_RIGHT)
    assert about.text.startswith("2 of 8: bob")
    viewer.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert about.text.startswith("8 of 8")
    assert "not scored" in about.text
    choose(browser, "pick", "0")
    shaded = "return [...document.querySelectorAll('#trace span')].filter((s) => s.style.backgroundColor).length"
    assert browser.execute_script(shaded) > 10
    titles = browser.execute_script("return [...document.querySelectorAll('#trace span[title]')].map((s) => s.title)")
    assert all(title.endswith(" nats") for title in titles)
    before = browser.execute_script("return document.querySelector('#trace span[title]').title")
    choose(browser, "shading", "confidence")
    assert browser.execute_script("return document.querySelector('#trace span[title]').title") != before
    masked = 0
    for _ in range(8):
        masked += browser.execute_script("return document.querySelectorAll('#trace s').length")
        viewer.send_keys(Keys.ARROW_RIGHT)
    assert masked == 1  # a tenth of the 18 steps that are scored, rounded down


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_and_follows_the_scheme(browser, page, width, dark):
    opened(browser, page, width, dark)
    draw_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    assert browser.execute_script("return document.querySelector('.plot').layout.paper_bgcolor").lower() != ""
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != ground


def test_controls_can_be_reached_and_have_names(browser, page):
    opened(browser, page)
    unnamed = """return [...document.querySelectorAll('button, select, [tabindex="0"], [role="img"]')].filter((e) =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label'))).length"""
    assert browser.execute_script(unnamed) == 0
    levels = "return [...document.querySelectorAll('h1, h2, h3')].map((e) => +e.tagName[1])"
    assert {*browser.execute_script(levels)} == {1, 2}
    assert browser.execute_script("return document.documentElement.lang") == "en"


def test_two_hundred_runs_are_drawn(browser, tmp_path):
    random = np.random.default_rng(0)
    steps = range(10, 2010, 10)

    def lines(seed: int) -> list[dict]:
        falls = np.exp(-np.arange(200) / (40 + seed % 7)) + random.normal(0, 0.02, 200) + 1
        return [
            {
                "train_step": s,
                "stage": "one",
                "tokens": 512 * s,
                "seconds": s,
                "metrics": {"loss": float(loss), "teacher/nll": {"ann": 1.0}},
                "weights": {},
            }
            for s, loss in zip(steps, falls, strict=True)
        ]

    runs = [Run(f"arm-{n}", tmp_path, "", lines(n), []) for n in range(200)]
    write(tmp_path / "study.html", render("study", "200 runs", study_sections(runs)))
    assert (tmp_path / "study.html").stat().st_size < 10_000_000
    opened(browser, tmp_path / "study.html")
    loaded = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    wait(browser, f"{loaded} > 0")
    assert browser.execute_script("return document.querySelector('.plot .main-svg')") is None  # below the fold
    at = browser.execute_script("document.querySelector('.plot').scrollIntoView(); return performance.now()")
    wait(browser, "return document.querySelector('.plot .main-svg')")
    took = browser.execute_script("return performance.now()") - at
    print(f"200 runs: loaded after {browser.execute_script(loaded):.0f} ms; plotted {took:.0f} ms after it is seen")
    draw_all(browser)
    assert browser.execute_script("return document.querySelectorAll('.plot .scatterlayer .trace').length") == 200
    assert browser.execute_script("return document.querySelectorAll('tbody tr').length") == 200
    assert browser.get_log("browser") == []


def test_a_page_without_plots_carries_no_plotly(tmp_path):
    assert len(render("empty", "", [])) < 50_000
