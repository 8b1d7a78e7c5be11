"""Make screenshots of TensorBoard's tabs, in a Chromium without a window: those of docs/dashboards.md.

    python tools/tensorboard_screenshots.py runs/scenes pictures
    python tools/tensorboard_screenshots.py runs/scenes pictures --tabs custom_scalars images --height 1200

TensorBoard and the browser run for as long as this does. The browser is driven by the DevTools protocol
through a pipe, which needs no package beside TensorBoard itself.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

TABS = {
    "scalars": "",
    "timeseries": "",
    "custom_scalars": "",
    "hparams": "",
    "hparams_parallel": "PARALLEL COORDINATES VIEW",
    "hparams_scatter": "SCATTER PLOT MATRIX VIEW",
    "images": "",
    "pr_curves": "",
    "text": "",
}
"""Name of a picture to the words that are clicked in its tab, whose address the name begins with."""

# TensorBoard's parts hide what they hold in shadow roots, so all of these are searched.
CLICK = """
const all = (root) => [...root.querySelectorAll('*')].flatMap(
  (e) => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);
all(document).filter((e) => e.innerText?.trim().toUpperCase() === %s).pop()?.click();
"""


class Page:
    """A page of a browser, told what to do through the file descriptors of a pipe."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._count, self._rest, self._session = 0, b"", {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result; events in between are dropped."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                self._rest += os.read(self._receive, 1 << 16) or sys.exit("the browser has ended")
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._count:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                return answer["result"]


@contextmanager
def browser(width: int, height: int) -> Iterator[Page]:
    """Start a browser without a window and yield an empty page of it."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt-get install chromium)")
    to_browser, from_browser = os.pipe(), os.pipe()
    flags = f"--headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size={width},{height}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The protocol reads from the file descriptor 3 and writes to 4, which a shell can set.
        command = (
            f'exec "{found}" {flags} --user-data-dir="{profile}" --remote-debugging-pipe about:blank '
            f"3<&{to_browser[0]} 4>&{from_browser[1]}"
        )
        process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=[to_browser[0], from_browser[1]],
            stderr=subprocess.DEVNULL,
        )
        try:
            page = Page(to_browser[1], from_browser[0])
            page(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            yield page
        finally:
            process.terminate()
            process.wait()


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve a folder of runs, and yield the address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    more = ["--host", "127.0.0.1", "--samples_per_plugin", "images=100", "--load_fast", "false"]
    process = subprocess.Popen([*command, *more], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"{address}/data/runs") as answer:
                    if json.load(answer):
                        break
            except OSError:
                pass
            time.sleep(0.5)
        else:
            sys.exit(f"TensorBoard shows no runs of {logdir}")
        yield address
    finally:
        process.terminate()
        process.wait()


def shoot(page: Page, address: str, tab: str, click: str, seconds: float, target: Path) -> None:
    """Open a tab, let it draw for some seconds, click, and write a picture."""
    page("Page.navigate", url="about:blank")
    page("Page.navigate", url=f"{address}/#{tab}")
    time.sleep(seconds)
    if click:
        page("Runtime.evaluate", expression=CLICK % json.dumps(click))
        time.sleep(seconds / 2)
    target.write_bytes(base64.b64decode(page("Page.captureScreenshot", format="png")["data"]))


def main() -> None:
    """Read the command line and make the pictures."""
    parser = argparse.ArgumentParser(description="Make screenshots of TensorBoard's tabs.")
    parser.add_argument("logdir", type=Path, help="folder of runs")
    parser.add_argument("output", type=Path, help="folder of the pictures")
    parser.add_argument("--tabs", nargs="+", choices=TABS, default=list(TABS), metavar="TAB")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8.0, help="that a tab has to draw (default: 8)")
    words = parser.parse_args()
    words.output.mkdir(parents=True, exist_ok=True)
    with browser(words.width, words.height) as page, tensorboard(words.logdir) as address:
        for name in words.tabs:
            target = words.output / f"{name}.png"
            hash_address = name if name in ("custom_scalars", "pr_curves") else name.partition("_")[0]
            shoot(page, address, hash_address, TABS[name], words.seconds, target)
            print(target)


if __name__ == "__main__":
    main()
