"""Takes the pictures of docs/screens: MLflow, the live page, a report and this documentation, as a browser shows them.

    make docs; python tools/screenshots.py FOLDER [report docs live mlflow]

FOLDER is one in which a few runs were trained and scored, a MEME first and a remix among them; the live page shows its
name, as that of a folder in somebody's home.

Needs chromium and chromedriver.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from orchestrator.tracking.writer import IMAGES_FOLDER, image_place

ROOT = Path(__file__).parents[1]
SCREENS = ROOT / "docs" / "screens"
WIDTH_PX, HEIGHT_PX = 1440, 900
WAIT_S = 90
SETTLE_S = 3.0
"""Charts are drawn after the words around them."""
NUM_COLORS = 192
PORTS = (5070, 5071)

OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={WIDTH_PX},900")


class Camera:
    """A browser without a screen, and where its pictures go."""

    def __init__(self, profile: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        size = {"width": WIDTH_PX, "height": HEIGHT_PX, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def theme(self, name: str) -> None:
        """light or dark."""
        media = [{"name": "prefers-color-scheme", "value": name}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def open(self, url: str, *texts: str) -> None:
        """Return when the page shows the texts."""
        self.browser.get("about:blank")  # an address that differs behind # alone would load nothing
        self.browser.get(url)
        self._wait(lambda browser: all(text in browser.find_element(By.TAG_NAME, "body").text for text in texts))

    def close_assistant(self) -> None:
        """MLflow's own, which opens by itself in a browser that is new to it."""
        time.sleep(SETTLE_S)
        self.browser.execute_script(
            "for (const key of Object.keys(localStorage)) "
            "if (key.includes('assistant.panelOpen')) localStorage.setItem(key, 'false')"
        )

    def slide_to(self, step: int) -> None:
        """Every slider, by the number beside it."""
        time.sleep(SETTLE_S)
        for number in self.browser.find_elements(By.CSS_SELECTOR, "[role='spinbutton'], input[type='number']"):
            number.send_keys(Keys.CONTROL + "a")
            number.send_keys(str(step), Keys.ENTER, Keys.TAB)  # the slider moves when the number is left
            time.sleep(0.5)
        first = self.browser.find_elements(By.CSS_SELECTOR, "[role='slider']")[0]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", first)

    def take(self, name: str) -> None:
        """In few colours, for the pages are flat and the documentation is to stay small."""
        time.sleep(SETTLE_S)
        shot = Image.open(BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
        SCREENS.mkdir(exist_ok=True)
        shot.quantize(NUM_COLORS, dither=Image.Dither.NONE).save(SCREENS / f"{name}.png", optimize=True)

    def _wait(self, condition: Callable[[webdriver.Chrome], bool]) -> None:
        WebDriverWait(self.browser, WAIT_S, ignored_exceptions=[Exception]).until(condition)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, str]]:
    """Addresses of MLflow's first page and of the live page, while rememe ui runs."""
    ports = ["--port", str(PORTS[0]), "--live-port", str(PORTS[1])]
    command = [sys.executable, "-m", "orchestrator.cli", "ui", *ports]
    at_home = os.environ | {"HOME": str(folder.absolute().parent)}
    process = subprocess.Popen(command, cwd=folder, env=at_home, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found: dict[str, str] = {}
        for line in process.stdout:
            what, _, rest = line.partition(" at ")
            found[what.split()[-1]] = rest.split()[0] if rest else ""
            if "results" in found:
                break
        yield found["results"], f"http://127.0.0.1:{PORTS[1]}/"
    finally:
        process.terminate()
        process.wait()


def _client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder.absolute() / 'runs' / 'mlflow.db'}")


def configurations(folder: Path) -> list[Run]:
    """Those that are scored, newest last."""
    client = _client(folder)
    experiment = client.get_experiment_by_name("rememe")
    query = "tags.`rememe.fingerprint` LIKE '%' AND attributes.status = 'FINISHED'"
    runs: list[Run] = client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"])
    return runs


def shoot_mlflow(camera: Camera, address: str, folder: Path, runs: list[Run]) -> None:
    """The table of configurations, the page of each kind, and their comparison."""
    server, experiment = address.partition("#")[0].rstrip("/"), runs[0].info.experiment_id
    pages = f"{server}/#/experiments/{experiment}/runs"
    kind = "?workflowType=machine_learning"
    names, albums = [run.info.run_name for run in runs], runs_below(folder, experiment, "pictures")
    camera.open(address, *names)
    camera.close_assistant()
    camera.open(address, *names)
    camera.take("experiment")
    page = f"{pages}/{runs[0].info.run_id}"
    camera.open(page + kind, names[0], "strategy.kind")
    camera.take("configuration")
    camera.open(f"{page}/model-metrics{kind}", "loss")
    camera.take("curves")
    for number, run in enumerate(runs[:2]):
        camera.open(f"{pages}/{albums[run.info.run_id]}/model-metrics{kind}", "denoised")
        camera.slide_to(last_step(folder, albums[run.info.run_id]))
        camera.take(f"pictures-{number}")
    nodes = runs_below(folder, experiment, "nodes")[runs[0].info.run_id]
    camera.open(f"{pages}/{nodes}/system-metrics{kind}", "system")
    camera.take("load")
    ids, experiments = (quote(json.dumps(one)) for one in ([run.info.run_id for run in runs], [experiment]))
    camera.open(f"{server}/#/compare-runs?runs={ids}&experiments={experiments}{kind.replace('?', '&')}", names[0])
    camera.take("comparison")


def runs_below(folder: Path, experiment_id: str, name: str) -> dict[str, str]:
    """Ids of the runs of a name, by the id of their configuration's run."""
    found = _client(folder).search_runs([experiment_id], f"attributes.run_name = '{name}'")
    return {run.data.tags["mlflow.parentRunId"]: run.info.run_id for run in found}


def last_step(folder: Path, run_id: str) -> int:
    """Of the series of pictures of a run."""
    found = (image_place(item.path) for item in _client(folder).list_artifacts(run_id, IMAGES_FOLDER))
    return max(place[1] for place in found if place is not None)


def shoot_report(camera: Camera, folder: Path, name: str) -> None:
    """In light and dark."""
    command = [sys.executable, "-m", "orchestrator.cli", "report", name]
    report = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    for theme in ("light", "dark"):
        camera.theme(theme)
        camera.open((folder / report).resolve().as_uri(), name)
        camera.take(f"report-{theme}")
    camera.theme("light")


def shoot_live(camera: Camera, address: str, name: str) -> None:
    """Without where it lies."""
    camera.open(f"{address}#{name}", name, "finished")
    camera.browser.execute_script("document.getElementById('where').textContent = 'runs'")
    camera.take("live")


def main() -> None:
    """All pictures, or those of some pages."""
    folder, pages = Path(sys.argv[1]), sys.argv[2:] or ["report", "docs", "live", "mlflow"]
    runs = configurations(folder)
    name = runs[0].info.run_name
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        camera = Camera(profile)
        try:
            if "report" in pages:
                shoot_report(camera, folder, name.rpartition("-")[0])
            if "docs" in pages:
                camera.open((ROOT / "site" / "start.html").as_uri(), "Start in ten minutes")
                camera.take("docs")
            with served(folder) as (mlflow, live):
                if "live" in pages:
                    shoot_live(camera, live, name)
                if "mlflow" in pages:
                    shoot_mlflow(camera, mlflow, folder, runs)
        finally:
            camera.browser.quit()


if __name__ == "__main__":
    main()
