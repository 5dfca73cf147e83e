"""The Docker Engine API over its Unix socket, as far as containers and images need it.

Knows paths, status codes and streams of the API; nothing of attempts.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

OLDEST = (1, 41)
"""The oldest version of the API with all that is used, that of Docker 20.10: spoken wherever it is still taken."""
TIMEOUT_S = 60.0
HEADER_BYTES = 8
MAX_FRAME_BYTES = 1 << 20


class EngineError(Exception):
    """The engine answered that it cannot; `status` is the HTTP status, the message its own."""

    def __init__(self, status: int, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.status = status


class EngineAway(EngineError):
    """The engine does not answer."""

    def __init__(self, message: str) -> None:
        """Without a status."""
        super().__init__(0, message)


class Frame(NamedTuple):
    """A piece of a container's output: stream 1 or 2, and its bytes."""

    stream: int
    payload: bytes


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Output:
    """A container's output as it comes; `close` from another thread ends it."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        """Take over an answered request."""
        # A response without a length takes the connection's socket over, which then no longer knows it.
        self._connection = connection
        self._response = response
        self._file = response.fp

    def __iter__(self) -> Iterator[Frame]:
        while True:
            header = self._exactly(HEADER_BYTES)
            if len(header) < HEADER_BYTES:
                return
            stream, left = header[0], int.from_bytes(header[4:], "big")
            while left:
                payload = self._exactly(min(left, MAX_FRAME_BYTES))
                if not payload:
                    return
                left -= len(payload)
                yield Frame(2 if stream == 2 else 1, payload)

    def _exactly(self, size: int) -> bytes:
        try:
            parts = b""
            while len(parts) < size:
                part = self._response.read(size - len(parts))
                if not part:
                    break
                parts += part
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            # Closed by the other side, or by `close`.
            return b""
        return parts

    def close(self) -> None:
        """End it: a reader that waits gets the end."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            raw: Any = self._file
            raw.raw._sock.shutdown(socket.SHUT_RDWR)


class Engine:
    """One Docker Engine. Every call opens a connection of its own, so that all may be used from any thread."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        """Serve the socket at `path`; nothing is sent yet."""
        self.path = path
        self._timeout_s = timeout_s
        self._version = ""

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Send a request and return its JSON answer, None where it has none. Raises EngineError, EngineAway."""
        connection, response = self._open(method, path, query, body, headers, timeout_s or self._timeout_s)
        try:
            data = response.read()
            return json.loads(data) if data.strip() else None
        except (OSError, http.client.HTTPException) as exc:
            raise EngineAway(f"the Docker Engine at {self.path} broke off its answer: {exc}") from exc
        finally:
            connection.close()

    def lines(
        self, method: str, path: str, query: Mapping[str, Any], headers: Mapping[str, str], idle_s: float
    ) -> Iterator[dict[str, Any]]:
        """Send a request and yield the JSON values of its answer as they come; more than `idle_s` without one fails."""
        connection, response = self._open(method, path, query, None, headers, idle_s)
        try:
            for line in response:
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException) as exc:
            raise EngineAway(f"the Docker Engine at {self.path} broke off its answer: {exc}") from exc
        finally:
            connection.close()

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container and return its id."""
        return str(self.call("POST", "/containers/create", {"name": name}, config)["Id"])

    def attach(self, container: str) -> Output:
        """The output that a container prints from now on; to be asked for before its start, to miss nothing."""
        query = {"stream": 1, "stdout": 1, "stderr": 1}
        return Output(*self._open("POST", f"/containers/{container}/attach", query, None, None, None))

    def logs(self, container: str, follow: bool = True) -> Output:
        """What the engine has kept of what a container printed, and with `follow` what it prints from now on."""
        query = {"follow": int(follow), "stdout": 1, "stderr": 1}
        return Output(*self._open("GET", f"/containers/{container}/logs", query, None, None, None))

    def wait(self, container: str) -> None:
        """Return when a container does not run any more. Raises EngineAway when the engine goes away before."""
        connection, response = self._open("POST", f"/containers/{container}/wait", None, None, None, None)
        try:
            if not response.read().strip():
                raise EngineAway(f"the Docker Engine at {self.path} went away")
        except (OSError, http.client.HTTPException) as exc:
            raise EngineAway(f"the Docker Engine at {self.path} went away: {exc}") from exc
        finally:
            connection.close()

    def inspect(self, container: str) -> dict[str, Any] | None:
        """What the engine knows of a container; None when there is no such container."""
        try:
            found = self.call("GET", f"/containers/{container}/json")
        except EngineError as exc:
            if exc.status == 404:
                return None
            raise
        return dict(found)

    def signal(self, container: str, name: str) -> None:
        """Send a signal; a container that does not run is fine."""
        try:
            self.call("POST", f"/containers/{container}/kill", {"signal": name}, timeout_s=10.0)
        except EngineError as exc:
            if exc.status not in (404, 409):
                raise

    def remove(self, container: str) -> None:
        """Remove a container with its anonymous volumes, killing it if need be; one that is gone is fine."""
        try:
            self.call("DELETE", f"/containers/{container}", {"force": 1, "v": 1})
        except EngineError as exc:
            # 409: somebody else is removing it just now.
            if exc.status not in (404, 409):
                raise

    def unpack(self, container: str, path: str, archive: bytes) -> None:
        """Unpack a tar archive at a path of a container, running or not, with the owners and modes that it tells."""
        self.call("PUT", f"/containers/{container}/archive", {"path": path}, archive)

    def labelled(self, label: str) -> list[dict[str, Any]]:
        """All containers, running or not, that carry `label` (name=value)."""
        return list(self.call("GET", "/containers/json", {"all": 1, "filters": json.dumps({"label": [label]})}))

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        query_text = f"?{urlencode(query)}" if query else ""
        url = quote(path, safe="/:@") + query_text
        try:
            return self._send(method, f"/v{self._version or self._agree()}{url}", body, headers, timeout_s)
        except EngineAway:
            # Whoever answers next may be another engine.
            self._version = ""
            raise
        except EngineError as exc:
            if exc.status != 400 or not str(exc).startswith("client version "):
                raise
            # The engine was replaced while nobody asked it anything.
            return self._send(method, f"/v{self._agree()}{url}", body, headers, timeout_s)

    def _agree(self) -> str:
        """Ask which versions of the API the engine speaks, and settle for the oldest that serves both."""
        connection, response = self._send("GET", "/version", None, None, self._timeout_s)
        try:
            told = json.loads(response.read())
            newest, least = (_numbers(told.get(name)) for name in ("ApiVersion", "MinAPIVersion"))
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as exc:
            raise EngineAway(f"what answers at {self.path} is no Docker Engine: {exc}") from exc
        finally:
            connection.close()
        if newest is not None and newest < OLDEST:
            speaks = f"speaks version {told['ApiVersion']} of its API at most"
            raise EngineError(
                0, f"the Docker Engine {told.get('Version')} at {self.path} {speaks}: {_text(OLDEST)} is needed"
            )
        self._version = _text(max(OLDEST, least or OLDEST))
        return self._version

    def _send(
        self, method: str, url: str, body: Any, headers: Mapping[str, str] | None, timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        sent = dict(headers or {})
        data = None
        if isinstance(body, bytes):
            data, sent["Content-Type"] = body, "application/x-tar"
        elif body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = _UnixConnection(self.path, timeout_s)
        try:
            connection.request(method, url, data, sent)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            raise EngineAway(f"the Docker Engine at {self.path} does not answer: {exc}") from exc
        if response.status >= 400:
            try:
                said = response.read()
            except (OSError, http.client.HTTPException):
                said = b""
            connection.close()
            raise EngineError(response.status, _message(said) or f"HTTP status {response.status}")
        return connection, response


def registry_header(credentials: Mapping[str, str] | None) -> dict[str, str]:
    """The header with which the engine signs in at a registry."""
    if credentials is None:
        return {}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(dict(credentials)).encode()).decode()}


def _numbers(version: Any) -> tuple[int, ...] | None:
    """A version of the API as numbers, which compare; None where it is not told. Raises ValueError."""
    return tuple(int(part) for part in str(version).split(".")) if version else None


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:500]
