"""HTTP for the explorer, on the loopback interface only.

Refused, with the server alive: other hosts and origins (a page of another site must not reach it, nor one whose name
was pointed at this machine), bodies above the limits (before they are read), and paths other than those listed here.
Nothing is written to disk: pictures are decoded from memory.
"""

import json
import math
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from spanbox.errors import SpanboxError
from spanbox.explore.session import Session, UnknownError

LARGEST_PICTURE = 16 * 1024 * 1024
LARGEST_JSON = 64 * 1024
"""Bytes of a request's body."""
TIMEOUT = 20.0
"""Seconds that a connection may be silent."""
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/texts.js": ("texts.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ExplorerServer(ThreadingHTTPServer):
    """Serves one session. `url` is its address; port 0 takes a free one."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted

    def __init__(self, session: Session, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.session = session
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections; they are not errors of the server."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            report(error)


def report(error: BaseException) -> None:
    print(f"spanbox explore: {type(error).__name__}: {error}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: ExplorerServer
    timeout = TIMEOUT
    protocol_version = "HTTP/1.1"
    server_version = "spanbox"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, handle: Callable[[], tuple[bytes, str]]) -> None:
        try:
            self._check_origin()
            content, kind = handle()
            self._send(HTTPStatus.OK, content, kind)
        except _RefusedError as refused:
            self._send_error(refused.status, str(refused))
        except UnknownError:
            self._send_error(HTTPStatus.NOT_FOUND, "there is no such picture")
        except SpanboxError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except (ConnectionError, TimeoutError):
            raise  # the client is gone
        except Exception as error:
            report(error)
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"spanbox failed ({type(error).__name__})")

    def _check_origin(self) -> None:
        """Refuse requests from other sites, and under other host names that resolve to this machine (DNS rebinding)."""
        own = self.server.hosts
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in own or (origin is not None and origin.removeprefix("http://") not in own):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "requests of other sites are refused")
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "requests of other sites are refused")

    def _get(self) -> tuple[bytes, str]:
        path = self.path.partition("?")[0]
        if path in PAGES:
            name, kind = PAGES[path]
            return (files("spanbox.explore") / "page" / name).read_bytes(), kind
        if path == "/api/info":
            return _json(self.server.session.info())
        if path.startswith("/picture/"):
            return self.server.session.picture(path.removeprefix("/picture/")), "image/jpeg"
        raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> tuple[bytes, str]:
        session = self.server.session
        match self.path:
            case "/api/search":
                return _json(session.search_text(self._field(self._object(), "text")))
            case "/api/search-picture":
                return _json(session.search_picture(self._body(LARGEST_PICTURE)))
            case "/api/ground":
                asked = self._object()
                text = None if asked.get("text") is None else self._field(asked, "text")
                return _json(session.ground(self._field(asked, "picture"), text))
        raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")

    def _object(self) -> dict[str, Any]:
        try:
            content = json.loads(self._body(LARGEST_JSON))
        except (ValueError, RecursionError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected JSON") from None
        if not isinstance(content, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected a JSON object")
        return content

    def _field(self, content: dict[str, Any], name: str) -> str:
        value = content.get(name)
        if not isinstance(value, str):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"expected a text as {name}")
        return value.encode("utf-8", "replace").decode()  # lone surrogates

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected Content-Length")
        if len(length) > 12 or int(length) > limit:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {limit // 1024:,} KiB")
        return self.rfile.read(int(length))

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        """An error closes the connection: its body may be unread."""
        self.close_connection = True
        content, kind = _json({"error": message})
        self._send(status, content, kind)

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they hold what users type."""


def _json(content: Any) -> tuple[bytes, str]:
    text = json.dumps(_finite(content), ensure_ascii=False)
    return text.encode("utf-8", "replace"), "application/json; charset=utf-8"


def _finite(content: Any) -> Any:
    """The content with null for numbers that are not finite, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
