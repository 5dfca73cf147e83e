"""HTTP to one fabric, as what `cfab` asks is built on: who asks, what came back, and what went wrong.

It speaks to /jobs/api/v1, which every listener serves whatever its primary contract is.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import requests

from app.cli.failure import ExitCode, Failure
from app.cli.paths import part

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
SUBMIT_TRIES = 4

_CODE_OF_STATUS = {
    404: ExitCode.NOT_FOUND,
    502: ExitCode.UNREACHABLE,
    503: ExitCode.UNREACHABLE,
    504: ExitCode.UNREACHABLE,
}


class _Bearer(requests.auth.AuthBase):
    """Sets the token itself: a plain header would lose to an entry of the user's ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Connection:
    """One server. Methods raise Failure with the exit code that fits: unreachable, refused, not found."""

    def __init__(self, server_url: str, token: str = "", patience_s: float = READ_TIMEOUT_S) -> None:
        """`patience_s` is how long it waits for an answer to begin."""
        self._timeouts_s = (min(CONNECT_TIMEOUT_S, patience_s), patience_s)
        self.server_url = server_url.rstrip("/")
        parts = urlsplit(self.server_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Failure(ExitCode.USAGE, f"{server_url!r} is no server; give one such as http://127.0.0.1:8080")
        self._base = self.server_url + "/jobs/api/v1"
        self._http = requests.Session()
        self._http.auth = _Bearer(token)
        # A proxy from the environment must not see what is meant for this machine.
        self._http.trust_env = not is_loopback(parts.hostname)

    def act_for(self, tenant: str) -> None:
        """Asks from now on for what is this tenant's, by name or id; only an admin may. Raises Failure USAGE."""
        part("name of a tenant", tenant)
        # Bytes, for requests sends text as Latin-1 at most.
        self._http.headers["X-Tenant"] = tenant.encode()

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer; options as those of requests."""
        with self.open(method, path, **options) as answer:
            try:
                return answer.json()
            except requests.exceptions.JSONDecodeError as exc:
                raise self._no_fabric(answer) from exc
            except requests.RequestException as exc:
                raise self._unreachable(exc) from exc

    @contextmanager
    def open(self, method: str, path: str, **options: Any) -> Iterator[requests.Response]:
        """An answer that is no error."""
        url = self._base + path
        try:
            # A redirect could carry a submit elsewhere as a GET; the API never sends one.
            answer = self._http.request(method, url, timeout=self._timeouts_s, allow_redirects=False, **options)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader) as exc:
            raise Failure(ExitCode.USAGE, f"cannot ask {url}: {exc}") from exc
        except requests.exceptions.InvalidJSONError as exc:
            # nan and inf are numbers to Python, but JSON has no word for them.
            raise Failure(ExitCode.USAGE, f"cannot be sent: {exc}; give finite numbers") from exc
        except requests.RequestException as exc:
            raise self._unreachable(exc) from exc
        with answer:
            if answer.status_code >= 300:
                raise self._refused(answer)
            yield answer

    def pieces(self, answer: requests.Response, size: int | None) -> Iterator[bytes]:
        """The bytes of an answer as they come, at most `size` at a time."""
        try:
            yield from answer.iter_content(size)
        except requests.RequestException as exc:
            raise self._unreachable(exc) from exc

    def _unreachable(self, exc: requests.RequestException) -> Failure:
        never_sent = isinstance(exc, requests.ConnectionError) and "NewConnectionError" in repr(exc)
        if never_sent or isinstance(exc, requests.exceptions.ConnectTimeout):
            message = f"no server answers at {self.server_url}; is `cfab up` running? --server names another"
            return Failure(ExitCode.UNREACHABLE, message, {"server": self.server_url, "never_sent": True})
        message = f"the connection to {self.server_url} broke: {exc}"
        return Failure(ExitCode.UNREACHABLE, message, {"server": self.server_url})

    def _refused(self, answer: requests.Response) -> Failure:
        code = _CODE_OF_STATUS.get(answer.status_code, ExitCode.REFUSED)
        try:
            body = answer.json()
            message, context = str(body["error"]), dict(body.get("context") or {})
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return self._no_fabric(answer)
        if answer.status_code == 401:
            message += (
                " (give a valid token in CFAB_API_TOKEN or CFAB_API_TOKEN_FILE: `cfab token` prints it for this "
                "machine's own fabric, `cfab token create` signs another)"
            )
        return Failure(code, message, context | {"status_code": answer.status_code})

    def _no_fabric(self, answer: requests.Response) -> Failure:
        code = ExitCode.UNREACHABLE if answer.status_code >= 500 else ExitCode.REFUSED
        message = f"{self.server_url} answered {answer.status_code} {answer.reason}, not as a Compute Fabric does"
        return Failure(code, message, {"server": self.server_url, "status_code": answer.status_code})

    def once(self, path: str, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
        """A POST, sent again with the same Idempotency-Key (a random one when None) if its answer is lost."""
        headers = {"Idempotency-Key": key or str(uuid4())}
        for left in range(SUBMIT_TRIES - 1, -1, -1):
            try:
                answer: dict[str, Any] = self.json("POST", path, json=dict(body), headers=headers)
                return answer
            except Failure as failure:
                again = failure.code is ExitCode.UNREACHABLE and not failure.context.get("never_sent")
                if not again or not left:
                    raise
                time.sleep(0.25 * (SUBMIT_TRIES - left))
        raise AssertionError("the loop returns or raises")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by name or by address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
