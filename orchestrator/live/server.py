"""Serves the live page on loopback: three files of its own, answers as JSON, and pictures of runs. It only reads."""

import gzip
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.live.curves import Curves
from orchestrator.live.views import picture_file, run_view, runs_view
from orchestrator.plan.masking import masked
from orchestrator.plan.places import RunsDir
from workloads.errors import ConfigError, RememeError
from workloads.grid import is_whole_png

HOST = "127.0.0.1"
"""This machine alone: the server asks for no password."""

LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}
"""By which a browser may call it, through a tunnel too; else a page elsewhere could have its own name lead here."""

PAGE = Path(__file__).with_name("page")
FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}

MAX_PICTURE_BYTES = 20 << 20
MIN_COMPRESSED_BYTES = 2_000
REQUEST_TIMEOUT_S = 30.0

HEADERS = {
    # Nothing from elsewhere is loaded, and nothing in the page runs that is not its own file.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked each time whether it has changed, which costs nothing if it has not.
    "Cache-Control": "no-cache",
}


class LivePage:
    """The page of a runs directory, served by threads of this process while the block lasts."""

    def __init__(self, runs: RunsDir, port: int) -> None:
        """port: 0 takes any that is free. ConfigError if it cannot be had."""
        try:
            self._server = _Server((HOST, port), partial(_Handler, runs, Curves()))
        except PermissionError:
            raise ConfigError(f"--live-port {port} is not for every user; take one from 1024 on") from None
        except OSError as error:
            raise ConfigError(f"--live-port {port} cannot be had ({error.strerror}); choose another") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="rememe-live", daemon=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def __enter__(self) -> "LivePage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def start_live_page(runs: RunsDir, port: int | None, *, beside: int) -> Iterator[None]:
    """Serve and say where while the block lasts; without a port, at the one after `beside` or any that is free."""
    try:
        page = LivePage(runs, port or min(beside + 1, 65535))
    except ConfigError:
        if port is not None:
            raise
        page = LivePage(runs, 0)
    with page:
        print(f"live page at {page.url} (what runs do, now)", flush=True)
        yield


def serve_alone(runs: RunsDir, port: int) -> None:
    """Serve until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with LivePage(runs, port) as page, suppress(KeyboardInterrupt):
        print(f"live page at {page.url} (Ctrl-C ends)", flush=True)
        threading.Event().wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: what can be answered is, and a browser that has gone away meanwhile is no error."""


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD alone; what is asked for is looked up among what there is, never opened by its name."""

    timeout = REQUEST_TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rememe", ""

    def __init__(self, runs: RunsDir, curves: Curves, *arguments: object) -> None:
        self._runs, self._curves = runs, curves
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer; what cannot be read is told in a sentence, as JSON."""
        host = self.headers.get("Host", "").rpartition(":")
        if (host[0] if host[2].isdigit() else self.headers.get("Host", "")) not in LOCAL_NAMES:
            self._tell(HTTPStatus.FORBIDDEN, "this page answers to localhost alone")
            return
        try:
            self._answer([unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")])
        except ConfigError as error:
            self._tell(HTTPStatus.NOT_FOUND, str(error))
        except (RememeError, OSError) as error:
            self._tell(HTTPStatus.INTERNAL_SERVER_ERROR, f"it cannot be read: {error}")

    do_HEAD = do_GET

    def _answer(self, parts: list[str]) -> None:
        match parts:
            case [name] if name in FILES:
                file, kind = FILES[name]
                self._send((PAGE / file).read_bytes(), kind)
            case ["api", "runs"]:
                self._send_json(runs_view(self._runs))
            case ["api", "runs", name]:
                self._send_json(run_view(self._runs, name, self._curves))
            case ["api", "runs", name, "pictures", file_name]:
                self._send_picture(picture_file(self._runs, name, file_name))
            case _:
                self._tell(HTTPStatus.NOT_FOUND, "there is no such page")

    def _send_picture(self, file: Path | None) -> None:
        # A link may lead anywhere.
        is_ours = file is not None and file.resolve().is_relative_to(self._runs.path.resolve())
        if file is None or not is_ours or file.stat().st_size > MAX_PICTURE_BYTES:
            self._tell(HTTPStatus.NOT_FOUND, "there is no such picture")
            return
        content = file.read_bytes()
        if is_whole_png(content):
            self._send(content, "image/png")
        else:
            self._tell(HTTPStatus.NOT_FOUND, f"{file.name} is no whole PNG file")

    def _send_json(self, content: Mapping[str, object], status: HTTPStatus = HTTPStatus.OK) -> None:
        # As it would be printed: a log of a user's own words may hold a password.
        self._send(masked(json.dumps(content)).encode(), "application/json", status)

    def _tell(self, status: HTTPStatus, sentence: str) -> None:
        self._send_json({"error": sentence}, status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        tag = f'"{sha256(body).hexdigest()[:32]}"'
        if status is HTTPStatus.OK and self.headers.get("If-None-Match") == tag:
            status, body = HTTPStatus.NOT_MODIFIED, b""
        headers = HEADERS | {"ETag": tag, "Content-Type": kind}
        is_text = not kind.startswith("image/")
        if is_text and len(body) > MIN_COMPRESSED_BYTES and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 5, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads a line per request."""
