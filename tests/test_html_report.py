from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image
from small_evaluations import (
    evaluation_of,
    picture,
    random_measurement,
    reported_as_measured,
)

from eval.config import OtherResult, Reference, VariantConfig
from eval.images.preprocess import PREPROCESS
from eval.images.valset import Sample
from eval.judge.verdict import FormResult, Verdict
from eval.measure.measurement import Measurement
from eval.models.demo import CAUTION
from eval.results.calibration import coverage_curve, reliability
from eval.results.html import THUMBNAIL, count_in_words, html_report
from eval.results.plots import Accuracy, accuracy_plot, coverage_plot, places_plot, reliability_plot


@pytest.fixture
def plotted() -> None:
    """Asked for by tests that need real plots."""


@pytest.fixture(autouse=True)
def _quick_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of a page, and most tests look at other things."""
    if "plotted" not in request.fixturenames:
        for name in ("accuracy", "reliability", "coverage", "places"):
            monkeypatch.setattr(f"eval.results.html.{name}_plot", lambda *_: Markup("<svg></svg>"))


def page_of(measured: Measurement, published: VariantConfig | None = None, **changes: Any) -> str:
    return html_report(evaluation_of(measured, published, **changes))


class Page(HTMLParser):
    """The elements of a page, and the text of each script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.raw:
            self.raw[self.inside][-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def result(**changes: Any) -> FormResult:
    """Base's reported figures, 23 images short of them in top-1; `expected` follows `reference`."""
    values: dict[str, Any] = {
        "form": "unfused",
        "images": 50_000,
        "images_expected": 50_000,
        "correct": {1: 38_497, 5: 46_635},
        "reference": {1: 77.04, 5: 93.27},
        "reference_source": "a paper",
        "tolerance": 25,
        "verdict": Verdict.PASS,
        "reason": "because",
        "expected": {1: 38_520, 5: 46_635},
    }
    return FormResult(**(values | changes))


# ---- words


def test_a_pass_is_said_in_images() -> None:
    words = count_in_words(result(), 1)
    assert words == "38,497 of 50,000, 23 fewer than reported; tolerance 25: PASS"
    assert count_in_words(result(), 5) == (
        "46,635 of 50,000, exactly as many as reported; tolerance 25: PASS"
    )


def test_each_count_has_its_own_verdict() -> None:
    failed = result(correct={1: 38_546, 5: 46_635}, verdict=Verdict.FAIL)
    assert count_in_words(failed, 1) == (
        "38,546 of 50,000, 26 more than reported; tolerance 25: FAIL"
    )
    assert count_in_words(failed, 5).endswith("tolerance 25: PASS")


PART = {"images": 400, "verdict": Verdict.PARTIAL, "expected": {}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {**PART, "correct": {1: 301, 5: 350}},
            "301 of 400; 95 % interval 70.79 to 79.23 % (reported: 77.04 %, inside)",
        ),
        (
            {**PART, "correct": {1: 201, 5: 350}},
            "201 of 400; 95 % interval 45.37 to 55.12 % (reported: 77.04 %, outside)",
        ),
        (
            {**PART, "correct": {1: 301, 5: 350}, "reference": {1: None, 5: None}},
            "301 of 400; 95 % interval 70.79 to 79.23 %",
        ),
        ({"verdict": Verdict.INCOMPLETE, "expected": {}}, "38,497 of 50,000"),
        (
            {"verdict": Verdict.NO_REFERENCE, "tolerance": None},
            "38,497 of 50,000, 23 fewer than reported",
        ),
        (
            {"verdict": Verdict.NO_REFERENCE, "reference": {1: None, 5: None}, "expected": {}},
            "38,497 of 50,000",
        ),
        ({"verdict": Verdict.DISAGREE}, "38,497 of 50,000, 23 fewer than reported"),
    ],
)
def test_other_verdicts_claim_no_comparison(changes: dict[str, Any], words: str) -> None:
    assert count_in_words(result(**changes), 1) == words


# ---- what is on the page


def test_pass() -> None:
    measured = random_measurement(2000)
    page = Page(page_of(measured))
    right = measured.scores["unfused"].correct(1)
    assert page.all("section")[0]["class"] == "verdict PASS"
    assert "The result matches the reported accuracy, within the tolerance." in page.text
    assert f"{right:,} of 2,000, exactly as many as reported; tolerance 10: PASS" in page.text
    assert "The top-1 predictions of the two forms are the same on all 2,000 images." in page.text
    assert page.text.count("Both forms") == 1
    assert "third-party, not compared" in page.text
    assert "This is the demo" not in page.text


def test_fail_of_one_form_is_the_headline() -> None:
    measured = random_measurement(200)
    scores = measured.scores["reparameterized"]
    wrong = np.flatnonzero(scores.rank > 0)[:11]
    scores.rank[wrong] = 0
    page = Page(page_of(measured))
    assert page.all("section")[0]["class"] == "verdict FAIL"
    assert "11 more than reported; tolerance 10: FAIL" in page.text
    assert "exactly as many as reported; tolerance 10: PASS" in page.text


def test_partial() -> None:
    measured = random_measurement(300)
    text = Page(page_of(measured, reported_as_measured(measured, images=50_000))).text
    assert "Only part of the set was measured, so it is not judged." in text
    assert "Reason: 300 of 50,000 images: a part of the set is not compared." in text
    assert "700 classes without images are not shown." in text
    assert "fewer than reported" not in text


def test_incomplete_lists_the_bad_images() -> None:
    measured = random_measurement(1000)
    measured.bad = {3: "truncated <file>", 7: "no image"}
    for scores in measured.scores.values():
        for index in measured.bad:
            scores.rank[index], scores.top[index] = -1, -1
            scores.prob[index], scores.nll[index] = np.nan, np.nan
    measured.logit_diff[list(measured.bad)] = np.nan
    text = Page(page_of(measured)).text
    assert "Some images could not be decoded, so the accuracy is not judged." in text
    assert "2 of 1,000 images could not be decoded." in text
    assert measured.valset.samples[3].path in text
    assert "truncated <file>" in text
    assert "are the same on all 998 images" in text
    assert "than reported" not in text


def test_no_reference_and_a_single_form() -> None:
    measured = random_measurement(200, forms=("unfused",))
    nothing = reported_as_measured(measured, reference={}, tolerance={}, others=())
    page = Page(page_of(measured, nothing))
    assert "Measured; there is no reference to compare with." in page.text
    assert "Reason: base has no reported figure to compare with." in page.text
    assert "agreement" not in [section.get("id") for section in page.all("section")]
    assert "Both forms" not in page.text
    assert "reparameterized" not in page.text


def test_demo_says_what_it_is() -> None:
    measured = random_measurement(200)
    known = reported_as_measured(measured, name="demo", reference_word="known answer")
    text = Page(page_of(measured, known, caution=CAUTION)).text
    assert CAUTION in text
    assert "The result matches the known answer, within the tolerance." in text
    assert "exactly as many as the known answer" in text
    assert "on the ImageNet validation set" not in text


def test_forms_that_disagree_are_no_pass() -> None:
    measured = random_measurement(200)
    measured.logit_diff[5] = 0.5
    page = Page(page_of(measured))
    assert page.all("section")[0]["class"] == "verdict DISAGREE"
    assert "do not deploy these weights" in page.text
    assert f"a logit differs by 0.5 (limit 0.012) on {measured.valset.samples[5].path}" in page.text


def test_below_one_percent_hints_at_the_labels() -> None:
    measured = random_measurement(200)
    for scores in measured.scores.values():
        scores.rank[:] = 500
    assert "are the labels in another order" in Page(page_of(measured)).text


def test_flips_are_counted_shown_and_listed() -> None:
    measured = random_measurement(2000)
    top = measured.scores["unfused"].top
    flipped = np.arange(0, 1000, 4)  # 250: 24 with thumbnails, 200 listed, 26 counted
    top[flipped, :2] = top[flipped, 1::-1]
    page = Page(page_of(measured))
    assert "two forms differ on 250 of 2,000 images" in page.text
    assert "26 more are in run.json" in page.text
    shown = [image["alt"] for image in page.all("img")][:24]
    assert shown == [f"The crop of {measured.valset.samples[i].path}" for i in flipped[:24]]
    assert measured.valset.samples[flipped[223]].path in page.text
    assert measured.valset.samples[flipped[224]].path not in page.text


def test_the_most_confident_mistakes_come_first() -> None:
    measured = random_measurement(200)
    scores = measured.scores["reparameterized"]
    confidence = np.where(scores.rank > 0, scores.prob[:, 0], 0)
    expected = np.argsort(-confidence, kind="stable")[:24]
    shown = [image["alt"] for image in Page(page_of(measured)).all("img")]
    assert shown == [f"The crop of {measured.valset.samples[i].path}" for i in expected]


def test_a_label_that_is_not_among_the_ranked_classes_has_no_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of ten ranked classes: a rank of 10 means 10 or more."""
    plotted: list[tuple[str, int]] = []

    def plot(places: list[tuple[str, int]]) -> Markup:
        plotted[:] = places
        return Markup("<svg></svg>")

    monkeypatch.setattr("eval.results.html.places_plot", plot)
    measured = random_measurement(200)
    for scores in measured.scores.values():
        scores.rank[:] = 9 + np.arange(200) % 2
        scores.listed = 10
    page = page_of(measured)
    assert "label at position 10<" in page
    assert "label not among the top 10<" in page
    assert "at position 11" not in page
    assert plotted[-2:] == [("6–10", 100), ("11–1000", 100)]  # noqa: RUF001


def test_classes_are_worst_first_and_add_up() -> None:
    measured = random_measurement(5000)
    html = page_of(measured)
    table = html[html.index('id="class-table"') :]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", table)]
    rows = [row for row in rows if row]
    assert len(rows) == 1000
    labels = measured.labels
    for row in (rows[0], rows[500], rows[999]):
        of_class = measured.scores["unfused"].rank[labels == int(row[0])]
        assert row[3:6] == ["5", str((of_class == 0).sum()), str((of_class == 0).sum())]
        assert row[6:8] == [f"{100 * (of_class < k).mean():.1f}" for k in (1, 5)]
    top1 = [float(row[6]) for row in rows]
    assert top1 == sorted(top1)
    assert sum(int(row[4]) for row in rows) == measured.scores["unfused"].correct(1)


def test_ece_and_pairs_are_those_of_the_deployed_form() -> None:
    measured = random_measurement(1000)
    scores = measured.scores["reparameterized"]
    scores.prob[:, 0] = 1.0
    scores.rank[:] = 1
    scores.top[:, 0] = (measured.labels + 1) % 1000
    scores.top[measured.labels < 3, 0] = 3
    page = Page(page_of(measured))
    assert "100.00 points (reparameterized)" in page.text
    measured = random_measurement(3000)
    scores = measured.scores["reparameterized"]
    scores.top[:, 0], scores.rank[:] = measured.labels, 0
    scores.top[:3, 0], scores.rank[:3] = 1, 2  # all three tenches are taken for goldfish
    assert "tench (0)goldfish (1)30" in Page(page_of(measured)).text


def test_answers_without_probabilities_have_no_calibration() -> None:
    measured = random_measurement(200)
    for scores in measured.scores.values():
        scores.prob[:] = np.nan
        scores.nll[:] = np.nan
    elsewhere = replace(PREPROCESS["torchvision"], name="of another device")
    page = Page(page_of(measured, preprocess=elsewhere))
    sections = [section.get("id") for section in page.all("section")]
    assert "confidence" not in sections
    assert "classes" in sections
    assert "There are none." in page.text


def test_everything_that_is_needed_to_repeat_it() -> None:
    measured = random_measurement(200)
    text = Page(page_of(measured)).text
    for value in (
        "python -m eval.imagenet --data '/data/my val'",
        "ab" * 32,
        measured.dataset_sha256,
        "c0ffee",
        "cudnn.benchmark",
        "6,687,208",
        "600,076,712",
        "Resize(256); CenterCrop(224)",
        "float noise",
        "/weights/base.pdparams",
        "20.0",  # images per second
    ):
        assert value in text


# ---- plots


def test_plots_take_colors_fonts_and_size_from_the_page() -> None:
    bins = reliability(np.array([0.1, 0.5, 0.9]), np.array([False, True, True]))
    svg = str(reliability_plot(bins))
    assert svg.startswith('<svg role="img" aria-label="Reliability diagram: ')
    assert "var(--first)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "font-family" not in svg
    assert "<style" not in svg
    assert ">images</text>" in svg
    assert svg == str(reliability_plot(bins))


def test_a_users_matplotlib_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Accuracy("unfused $x", 80.07, (79.5, 80.5)), Accuracy("Vast", 76.0)]
    expected = accuracy_plot(rows, 80.1)
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert accuracy_plot(rows, 80.1) == expected
    assert matplotlib.rcParams["axes.facecolor"] == "red"
    assert "unfused $x" in expected


@pytest.mark.parametrize("confidence", [0.001, 1.0])
def test_all_answers_equally_confident(confidence: float) -> None:
    answers = np.full(3, confidence), np.array([True, False, True])
    assert "<svg" in coverage_plot(coverage_curve(*answers))
    assert "<svg" in reliability_plot(reliability(*answers))
    assert "<svg" in places_plot([("1", 0), ("2", 0)])


# ---- one file, safe and small


def test_self_contained(plotted: None) -> None:
    measured = random_measurement(200)
    html = page_of(measured)
    page = Page(html)
    assert not page.all("link")[1:]
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            target = attributes.get(name, "")
            assert not target or re.match(r"data:|#|[a-z_]+\.(csv|json)$", target), target
    style = page.raw["style"]
    assert len(style) == 1
    assert "@import" not in style[0]
    assert "url(" not in style[0]


def test_only_its_own_script_may_run() -> None:
    page = Page(page_of(random_measurement(200)))
    assert len(page.raw["script"]) == 1
    digest = base64.b64encode(hashlib.sha256(page.raw["script"][0].encode()).digest()).decode()
    policy = next(row["content"] for row in page.all("meta") if row.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_names_from_outside_are_escaped(plotted: None) -> None:
    measured = random_measurement(200)
    evil = "<script>alert(1)</script>"
    quotes = '"onerror="alert(2)" x=\'.JPEG'
    scores = measured.scores["reparameterized"]
    first, second = np.flatnonzero(scores.rank > 0)[:2]
    scores.prob[[first, second], 0] = 0.999
    measured.scores["unfused"].top[first, 0] += 1
    samples = list(measured.valset.samples)
    samples[first] = Sample(f"n01440764/{evil}.JPEG", 0)
    samples[second] = Sample(f"n01440764/{quotes}", 0)
    measured.valset = replace(measured.valset, samples=tuple(samples))
    measured.logit_diff[first] = 1e-3
    config = reported_as_measured(
        measured,
        name=evil,
        reference={"": Reference(evil, top1=70.0)},
        others=(OtherResult(evil, evil, 50.0), OtherResult("$x^2$ & <b>", "", 60.0)),
    )
    versions = {"torch": "2", "torchvision": "0", "timm": "1", evil: evil}
    html = page_of(
        measured, config, command=f"python {evil}", versions=versions, device=f"{evil}\x1b[2J\u202e"
    )
    page = Page(html)
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert r"\x1b[2J\u202e" in page.text
    assert len(page.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert f"The crop of n01440764/{quotes}" in [image["alt"] for image in page.all("img")]
    assert "$x^2$ & <b>" in page.text


def test_a_name_that_is_no_text_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.measure.measurement.fingerprint", lambda samples, digests: "00" * 32)
    measured = random_measurement(200)
    scores = measured.scores["reparameterized"]
    wrong = int(np.flatnonzero(scores.rank > 0)[0])
    scores.prob[wrong, 0] = 1.0
    samples = list(measured.valset.samples)
    samples[wrong] = Sample("n01440764/caf\udce9.JPEG", 0)  # Latin-1 bytes on a UTF-8 system
    measured.valset = replace(measured.valset, samples=tuple(samples))
    evaluation_of(measured).save(tmp_path)
    assert "caf\\udce9.JPEG" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_thumbnails_are_the_crops_that_the_model_saw() -> None:
    measured = random_measurement(200)
    for name in ("torchvision", "squash"):
        image = Page(page_of(measured, preprocess=PREPROCESS[name])).all("img")[0]
        path = image["alt"].removeprefix("The crop of ")
        shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert shown.size == (THUMBNAIL, THUMBNAIL)
        crop = Image.fromarray(PREPROCESS[name].crop(picture(path)))
        expected = np.asarray(crop.resize(shown.size, Image.Resampling.LANCZOS), np.int16)
        assert np.abs(expected - np.asarray(shown)).mean() < 6


def test_an_image_that_cannot_be_shown_ends_nothing() -> None:
    def gone(path: str) -> bytes:
        raise FileNotFoundError(path)

    for read in (gone, lambda path: b"not an image"):
        page = Page(page_of(random_measurement(200, read=read)))
        assert not page.all("img")
        assert "no image" in page.text


def test_50_000_images_are_a_small_page_and_few_are_read(plotted: None) -> None:
    read = []

    def counted(path: str) -> bytes:
        read.append(path)
        return picture(path)

    measured = random_measurement(50_000, read=counted)
    top = measured.scores["unfused"].top
    top[:20_000, :2] = top[:20_000, 1::-1]
    measured.bad = dict.fromkeys(range(40_000, 45_000), "a reason that is as long as reasons are")
    html = page_of(measured)
    assert len(read) == 48
    assert len(html.encode()) < 2_000_000
    assert html.count("<img ") == 48


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver is installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as started:
        yield started


@pytest.fixture(scope="module")
def loaded(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report of 2,000 images with flips, opened from disk."""
    measured = random_measurement(2000)
    measured.scores["unfused"].top[:8, 0] += 1
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page_of(measured), encoding="utf-8")
    browser.get(file.as_uri())
    return browser


def column(browser: Any, number: int) -> list[str]:
    """Texts of a column of the table of classes, of the rows that are visible."""
    script = """return [...document.querySelectorAll("#class-table tbody tr")]
        .filter(row => row.offsetParent).map(row => row.cells[arguments[0]].textContent)"""
    cells: list[str] = browser.execute_script(script, number)
    return cells


def heads(browser: Any) -> list[Any]:
    buttons: list[Any] = browser.find_elements("css selector", "#class-table thead th button")
    return buttons


def test_browser_loads_it_without_a_complaint_and_without_a_request(loaded: Any) -> None:
    assert loaded.get_log("browser") == []
    requests = loaded.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [name for name in requests if not name.startswith("data:")] == []
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert loaded.execute_script(broken) == 0


def test_browser_sorts_by_number_and_by_text(loaded: Any) -> None:
    number, name = heads(loaded)[0], heads(loaded)[1]
    number.click()
    assert column(loaded, 0) == [str(i) for i in range(1000)]
    number.click()
    assert column(loaded, 0) == [str(i) for i in reversed(range(1000))]
    name.click()
    names = column(loaded, 1)
    assert names[0].lower() < names[500].lower() < names[-1].lower()
    script = """return [...document.querySelectorAll("#class-table th")]
        .map(head => head.getAttribute("aria-sort"))"""
    assert loaded.execute_script(script)[:2] == [None, "ascending"]


def test_browser_searches(loaded: Any) -> None:
    search = loaded.find_element("id", "class-search")
    search.send_keys("crane")
    assert {"134", "517"} <= set(column(loaded, 0))
    assert len(column(loaded, 0)) < 10
    found = loaded.find_element("id", "class-count").text
    assert found == f"{len(column(loaded, 0))} of 1,000"
    search.clear()
    search.send_keys("n01440764")
    assert column(loaded, 0) == ["0"]
    search.send_keys("x")
    assert column(loaded, 0) == []
    for _ in range(10):
        search.send_keys("\ue003")  # backspace: the event that clear() does not send
    assert len(column(loaded, 0)) == 1000


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_browser_has_no_sideways_scrolling(loaded: Any, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    loaded.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        assert loaded.execute_script("return document.documentElement.scrollWidth") <= width
        assert loaded.execute_script("return innerWidth") == width
    finally:
        loaded.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_browser_dark_and_print(loaded: Any) -> None:
    colors = """const style = getComputedStyle(document.body);
        return [style.backgroundColor, style.color]"""
    seen = {}
    for name, media in {
        "light": {"features": [{"name": "prefers-color-scheme", "value": "light"}]},
        "dark": {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
        "print": {"media": "print"},
    }.items():
        loaded.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        seen[name] = loaded.execute_script(colors)
        if name == "print":
            assert len(column(loaded, 0)) == 60
    loaded.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert seen["light"] == ["rgb(245, 246, 248)", "rgb(27, 35, 46)"]
    assert seen["dark"] == ["rgb(17, 21, 27)", "rgb(229, 233, 239)"]
    assert seen["print"] == ["rgb(255, 255, 255)", "rgb(27, 35, 46)"]
