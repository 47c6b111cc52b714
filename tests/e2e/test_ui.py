"""`rememe ui` in a real browser: the configuration with its score, its experts below it, its grid."""

import base64
import csv
import io
import itertools
import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from orchestrator.live.server import LivePage
from orchestrator.plan.places import RunsDir
from workloads.training.records import read_records

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="chromium is not installed"
    ),
]

WAIT_S = 60
ROOT = Path(__file__).parents[2]
EXPANDER = "button[data-component-id*='runnamecellrenderer']"
SCREENSHOTS = ROOT / "runs" / "screenshots"
"""Ignored by git; for people to look at."""


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    return free


@pytest.fixture(scope="module")
def trained(
    tiny_run: dict[str, Any],
    rememe_here: Callable[..., "subprocess.CompletedProcess[str]"],
    one_slot: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A directory in which `rememe train tiny.yaml` has run."""
    folder = tmp_path_factory.mktemp("shown")
    training = tiny_run["training"] | {"images": 128}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_run | {"training": training}))
    result = rememe_here("train", "tiny.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def run_dir(trained: Path) -> Path:
    (found,) = (trained / "runs").glob("tiny-*")
    return found


@pytest.fixture
def address(trained: Path, port: int, start_rememe: Callable[..., "subprocess.Popen[str]"]) -> Iterator[str]:
    process = start_rememe("ui", "--port", port, cwd=trained)
    assert process.stdout is not None
    live, told = (next((line for line in process.stdout if f"{words} at" in line), "") for words in ("page", "results"))
    assert told, "rememe ui ended"
    with urllib.request.urlopen(f"{live.split()[3]}api/runs", timeout=30) as answer:
        assert [one["name"][:5] for one in json.loads(answer.read())["runs"]] == ["tiny-"]
    yield told.split()[2]
    process.terminate()
    assert process.wait(30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server outlives rememe ui"


def test_the_browser_shows_the_score_and_four_experts(
    trained: Path, run_dir: Path, address: str, browser: webdriver.Chrome, wait_for_text: Callable[..., str]
) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{trained / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rememe")
    query = f"attributes.run_name = '{run_dir.name}'"
    (parent,) = client.search_runs([experiment.experiment_id], query)
    whole, _, decimals = str(parent.data.metrics["fd-fashion-cnn"]).partition(".")
    score = f"{whole}.{decimals[:3]}"  # cut, not rounded: the page shows all of its digits
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    server = address.partition("#")[0].rstrip("/")

    # What `rememe ui` prints: configurations alone, with what a researcher compares.
    browser.get(address)
    shown = wait_for_text(browser, run_dir.name, "fd-fashion-cnn", score, "strategy.kind")
    assert "expert_00" not in shown
    browser.save_screenshot(str(SCREENSHOTS / "configurations.png"))

    page = f"{server}/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}"
    browser.get(page)
    wait_for_text(browser, run_dir.name, "fd-fashion-cnn", score, "strategy.kind", "rememe train tiny.yaml")
    picture = browser.find_element(By.CSS_SELECTOR, "img[src*='grid.png']")
    browser.execute_script("arguments[0].scrollIntoView()", picture)
    wait = WebDriverWait(browser, WAIT_S)
    wait.until(lambda _: browser.execute_script("return arguments[0].naturalWidth", picture) > 0, "no grid is drawn")
    browser.save_screenshot(str(SCREENSHOTS / "configuration.png"))
    browser.get(f"{page}/model-metrics")
    wait_for_text(browser, "(4)", *(f"expert_0{number}" for number in range(4)))
    browser.save_screenshot(str(SCREENSHOTS / "curves.png"))

    browser.get(f"{server}/#/experiments/{experiment.experiment_id}/runs")
    wait_for_text(browser, run_dir.name)
    for button in browser.find_elements(By.CSS_SELECTOR, EXPANDER):
        browser.execute_script("arguments[0].click()", button)
    wait_for_text(browser, run_dir.name, *(f"expert_0{number}" for number in range(4)))

    with urllib.request.urlopen(
        f"{server}/get-artifact?path=grid.png&run_uuid={parent.info.run_id}", timeout=30
    ) as answer:
        assert answer.read() == (run_dir / "grid.png").read_bytes()


def looks(browser: webdriver.Chrome, url: str, name: str) -> Iterator[None]:
    """The page in light and dark, wide and narrow, at each of which a screenshot is taken at the end."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for theme, width in itertools.product(("light", "dark"), (1440, 390)):
        media = [{"name": "prefers-color-scheme", "value": theme}]
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(url)
        yield
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (int(ground.removeprefix("rgb(").partition(",")[0]) > 128) == (theme == "light")
        browser.execute_script("scrollTo(0, 0)")
        browser.save_screenshot(str(SCREENSHOTS / f"{name}-{theme}-{width}.png"))
    assert browser.get_log("browser") == []


def require_drawn(browser: webdriver.Chrome, pictures: list[WebElement]) -> None:
    for picture in pictures:
        assert picture.get_attribute("alt")
        browser.execute_script("arguments[0].scrollIntoView()", picture)
        WebDriverWait(browser, WAIT_S).until(lambda _, it=picture: it.get_property("naturalWidth"))


def test_the_live_page_shows_a_finished_run_in_every_size_and_light(
    trained: Path, run_dir: Path, browser: webdriver.Chrome, wait_for_text: Callable[..., str]
) -> None:
    """Nothing is wider than the screen, every picture is drawn, and the browser has nothing to complain of."""
    with LivePage(RunsDir(trained / "runs"), 0) as page:
        for _ in looks(browser, page.url, "live"):
            shown = wait_for_text(browser, run_dir.name, "finished", "4 done")
            for number in range(4):
                assert f"expert_0{number}" in shown
            pictures = browser.find_elements(By.CSS_SELECTOR, "#pictures img")
            assert len(pictures) == 1 + len(list((run_dir / "figures").glob("*.png")))
            require_drawn(browser, pictures)
            assert len(browser.find_elements(By.CSS_SELECTOR, "#experts svg[aria-label^='loss of expert_0']")) == 4
            table = browser.find_element(By.ID, "experts-table")
            assert table.get_property("scrollWidth") <= table.get_property("clientWidth")


def test_the_report_of_a_run_is_whole_in_itself_and_its_tables_sort(
    trained: Path,
    run_dir: Path,
    browser: webdriver.Chrome,
    rememe_here: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = rememe_here("report", "tiny", cwd=trained)
    assert done.returncode == 0, done.stderr
    file = Path(done.stdout.strip())
    assert file.stat().st_size < 3_000_000
    moved = file.rename(trained / "elsewhere.html")
    for _ in looks(browser, moved.as_uri(), "report"):
        require_drawn(browser, browser.find_elements(By.TAG_NAME, "img"))
    plots = browser.find_elements(By.CSS_SELECTOR, "figure.plot")
    links = [plot.find_element(By.CSS_SELECTOR, "a[download$='.csv']") for plot in plots]
    assert {link.get_attribute("download") for link in links} == {"training_loss.csv", "loss_by_timestep.csv"}
    (losses,) = [link for link in links if link.get_attribute("download") == "training_loss.csv"]
    content = base64.b64decode(str(losses.get_attribute("href")).partition("base64,")[2]).decode()
    shown = [(int(row["images_seen"]), float(row["loss"])) for row in csv.DictReader(io.StringIO(content))]
    keys = [job["key"] for job in json.loads((run_dir / "plan.json").read_text())["jobs"]]
    records = [read_records(trained / "runs" / "store" / key / "records.jsonl") for key in keys]
    assert shown == [(record.images_seen, record.loss) for found in records for record in found]

    heads = browser.find_elements(By.CSS_SELECTOR, "[aria-label='experts'] th button")
    (head,) = [head for head in heads if head.text.startswith("loss")]
    for is_reversed in (False, True):
        browser.execute_script("arguments[0].click()", head)
        column = browser.find_elements(By.CSS_SELECTOR, "[aria-label='experts'] tbody td:nth-child(7)")
        values = [float(str(cell.get_attribute("data-v"))) for cell in column]
        assert len(values) == 4
        assert values == sorted(values, reverse=is_reversed)
