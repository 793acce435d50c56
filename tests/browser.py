"""A headless Chromium, driven by its DevTools protocol: enough to open pages, ask them questions and take pictures."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Server:
    """Serves a folder at `address` until closed."""

    def __init__(self, folder: Path):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Browser:
    """One tab. errors: what went to the console as an error, was thrown, or failed to load. requests: all addresses."""

    def __init__(self, chromium: str):
        websocket = pytest.importorskip("websocket")
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        flags = ["--headless", "--disable-gpu", "--disable-background-networking", "--remote-debugging-port=0"]
        flags += ["--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={self.profile}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags += ["--no-sandbox"]
        self.process = subprocess.Popen([chromium, *flags, "about:blank"], stderr=subprocess.PIPE, text=True)
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"ws://\S+", line):
                break
        else:
            raise RuntimeError(f"Chromium did not start: {said[-500:]}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # or it would wait for us to read
        self.socket = websocket.create_connection(found[0], timeout=60, suppress_origin=True)
        self.errors, self.requests, self.count, self.session = [], [], 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        """Call a method of the protocol and return its result; what happens meanwhile is noted."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            self._note(answer.get("method"), answer.get("params", {}))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _note(self, event: str, found: dict) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif event == "Network.loadingFailed" and not found.get("canceled"):
            self.errors.append(f"failed to load: {found['errorText']}")
        elif event == "Runtime.exceptionThrown":
            self.errors.append(found["exceptionDetails"].get("exception", found["exceptionDetails"]))
        elif event == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"])
        elif event == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
            self.errors.append(found["args"])

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Load a page in a window of this size; below 500 pixels, as a phone does."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Page.navigate", url="about:blank")  # else an address that differs after # alone is not loaded
        self.send("Page.navigate", url=address)
        self.run("new Promise(go => document.readyState === 'complete' ? go() : addEventListener('load', () => go()))")

    def run(self, script: str):
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)
