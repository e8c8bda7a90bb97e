"""The explorer as somebody uses it: in a JupyterLab, in a browser, where a moved widget changes what is seen."""

import json
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers.child_processes import free_port
from helpers.places import ROOT

from binaryvit.analysis.explore.explorer import Explorer
from binaryvit.analysis.stored import open_study
from binaryvit.studies.execution import process_environment

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 120  # to start, to answer or to end: a busy machine may take them, an idle one takes a few
NEWS = "@jupyterlab/apputils-extension:announcements"  # would fetch them
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"
BYTES = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the notebook and of the stored runs it shows, since JupyterLab writes beside what it opens."""
    folder = tmp_path / "copy"
    shutil.copytree(ROOT / "results" / "smoke" / "runs", folder / "results" / "smoke" / "runs")
    shutil.copy(ROOT / "results" / "smoke" / "study.yaml", folder / "results" / "smoke")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "explore.ipynb", folder / "notebooks")
    return folder


@pytest.fixture
def address(folder, tmp_path) -> Iterator[str]:
    """Where a JupyterLab shows the copied notebook. It ends with the test, and its kernels end with it."""
    port = free_port()
    token, settings = secrets.token_hex(), tmp_path / "config" / "labconfig"
    settings.mkdir(parents=True)
    (settings / "page_config.json").write_text(json.dumps({"disabledExtensions": {NEWS: True}}))
    places = {f"JUPYTER_{name.upper()}_DIR": str(tmp_path / name) for name in ("config", "data", "runtime")}
    places |= {f"JUPYTERLAB_{name.upper()}_DIR": str(tmp_path / name) for name in ("settings", "workspaces")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    with process_environment() as environment, open(tmp_path / "log.txt", "w+") as log:
        server = psutil.Popen(command, env=environment | places, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(port, server, tmp_path / "log.txt")
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks/explore.ipynb?token={token}"
        finally:
            end(server)


def wait_for(port: int, server: psutil.Popen, log: Path) -> None:
    """Waits until the server answers at the port."""
    for _ in range(5 * SECONDS):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
    raise TimeoutError(log.read_text())


def end(server: psutil.Popen) -> None:
    """Asks the server to end, as it does its kernels. A process that stays is killed, and fails the test."""
    if server.poll() is None:
        processes = [server, *server.children(recursive=True)]
        server.terminate()
        _, left = psutil.wait_procs(processes, timeout=SECONDS)
        for process in left:
            process.kill()
        assert left == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium, the browser that shows the notebook, is not installed")
def test_a_moved_widget_changes_picture_and_finding(folder, address):
    explorer = Explorer(open_study(folder / "results" / "smoke"))
    first = explorer.first()
    block = replace(first, block=first.block + 1)
    layer = replace(block, layer="mlp.fc1.binarize")
    run = explorer.fit(replace(layer, run="deit_micro_patch4_32-seed0"))
    views = [explorer.view(selection) for selection in (first, block, layer, run)]
    asked, seconds = [], []

    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM) as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(1000 * SECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_function(IDLE)
        page.evaluate(RUN_ALL)

        def shown(finding):
            """The bytes of the picture above the finding."""
            page.get_by_text(finding, exact=True).wait_for()
            return bytes(page.locator("img.widget-image").evaluate(BYTES))

        pictures = [shown(views[0][1].data)]
        slider = page.locator(".widget-slider").filter(has_text="block").get_by_role("slider")
        for change, (_, text) in (
            (lambda: slider.press("ArrowRight"), views[1]),
            (lambda: page.get_by_label("layer", exact=True).select_option(layer.layer), views[2]),
            (lambda: page.get_by_label("run", exact=True).select_option("DeiT (full precision)"), views[3]),
        ):
            start = time.monotonic()
            change()
            pictures.append(shown(text.data))
            seconds.append(time.monotonic() - start)

    print(f"From a change to its picture: {statistics.median(seconds):.2f} s (median of {len(seconds)}).")
    assert pictures == [picture.data for picture, _ in views]
    assert len(set(pictures)) == len(views)
    assert [url for url in asked if not url.startswith((address.split("/lab")[0], "blob:", "data:"))] == []
