"""The jobs contract over HTTP, as `cfab` and the demo use it. Knows no terminal and no storage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from app.cli.array_calls import ArrayCalls
from app.cli.connection import READ_TIMEOUT_S, is_loopback
from app.cli.failure import ExitCode, Failure
from app.cli.paths import job_path, node_path, tenant_path
from app.cli.plan_calls import PlanCalls
from app.cli.sse import parse
from config.settings import Settings

SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.05, 2.0
TERMINAL_WORDS = frozenset({"completed", "failed", "cancelled"})


class Client(ArrayCalls, PlanCalls):
    """One server. Methods raise Failure with the exit code that fits: unreachable, refused, not found."""

    def submit(self, job: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """Submit one job and return the answer; `key` is the Idempotency-Key (a random one when None).

        A lost answer is asked for again with the same key, so that one call never makes two jobs.
        """
        return self.once("/jobs", job, key)

    def jobs(self, limit: int = 100, **filters: str | None) -> list[dict[str, Any]]:
        """The newest jobs first, at most `limit`, filtered by status, type and priority."""
        wanted = {name: value for name, value in filters.items() if value}
        listed: list[dict[str, Any]] = self.json("GET", "/jobs", params={"limit": str(limit), **wanted})
        return listed

    def job(self, job_id: str) -> dict[str, Any]:
        """One job with its attempts and output."""
        shown: dict[str, Any] = self.json("GET", job_path(job_id))
        return shown

    def explain(self, job_id: str) -> dict[str, Any]:
        """Why one job waits, or where it is."""
        told: dict[str, Any] = self.json("GET", job_path(job_id) + "/explain")
        return told

    def usage(self, job_id: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """What the caller's active jobs (or one of them) use now, the longest running first."""
        wanted = {"limit": str(limit), **({"job_id": job_id} if job_id else {})}
        used: list[dict[str, Any]] = self.json("GET", "/samples/latest", params=wanted)
        return used

    def stop(self, job_id: str, reason: str | None = None) -> dict[str, Any]:
        """Ask for a job's end: a pending one is cancelled, a running one gets SIGTERM, grace, SIGKILL."""
        body = {} if reason is None else {"reason": reason}
        stopped: dict[str, Any] = self.json("POST", job_path(job_id) + "/stop", json=body)
        return stopped

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job that has not started; one that has is refused."""
        cancelled: dict[str, Any] = self.json("DELETE", job_path(job_id))
        return cancelled

    def rehearse(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What a submit of this would lead to now; it changes nothing."""
        told: dict[str, Any] = self.json("POST", "/jobs", json=dict(job), params={"dry_run": "true"})
        return told

    def change_job(self, method: str, job_id: str, below: str = "", **body: Any) -> dict[str, Any]:
        """Hold, release, requeue (POST, /hold …) or reprioritise (PATCH) a job; the job as it is then."""
        changed: dict[str, Any] = self.json(method, job_path(job_id) + below, json=body)
        return changed

    def resubmit(self, job_id: str, key: str | None = None) -> dict[str, Any]:
        """Submit the same as a job again, once for each `key` (a random one when None), however often it is sent."""
        return self.once(job_path(job_id) + "/resubmit", {}, key)

    def executors(self) -> list[dict[str, Any]]:
        """The nodes and programs that run jobs now."""
        active: list[dict[str, Any]] = self.json("GET", "/admin/executors")
        return active

    def tenants(self) -> list[dict[str, Any]]:
        """The tenants that the caller may see, by name."""
        found: list[dict[str, Any]] = []
        while len(page := self.json("GET", "/tenants", params={"limit": "1000", "offset": str(len(found))})) == 1000:
            found += page
        return found + list(page)

    def tenant(self, name_or_id: str) -> dict[str, Any]:
        """One tenant with its quota and what it holds now."""
        shown: dict[str, Any] = self.json("GET", tenant_path(name_or_id))
        return shown

    def make_tenant(self, tenant: Mapping[str, Any]) -> dict[str, Any]:
        """Make a tenant; refused when its name is taken."""
        made: dict[str, Any] = self.json("POST", "/tenants", json=dict(tenant))
        return made

    def change_tenant(self, name_or_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change the fields that are named, and no others."""
        changed: dict[str, Any] = self.json("PATCH", tenant_path(name_or_id), json=dict(changes))
        return changed

    def tenant_images(self, name_or_id: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a tenant's images must be, after the fields that `changes` names were changed."""
        path = tenant_path(name_or_id) + "/images"
        found: dict[str, Any] = self.json("PATCH", path, json=dict(changes)) if changes else self.json("GET", path)
        return found

    def nodes(self, **options: str | None) -> list[dict[str, Any]]:
        """All nodes by cluster and name; options: state, label (NAME=VALUE)."""
        found: list[dict[str, Any]] = self.json("GET", "/nodes", params=_given(options))
        return found

    def node(self, name: str) -> dict[str, Any]:
        """One node with the jobs it holds."""
        shown: dict[str, Any] = self.json("GET", node_path(name))
        return shown

    def change_node(self, method: str, name: str, below: str = "", **body: Any) -> dict[str, Any]:
        """Drain (POST, /drain), resume (POST, /resume) or change a node or its GPU (PATCH); the node as it is then."""
        changed: dict[str, Any] = self.json(method, node_path(name) + below, json=body)
        return changed

    def forget_node(self, name: str) -> None:
        """Remove a node that is gone."""
        with self.open("DELETE", node_path(name)):
            pass

    def log_lines(self, job_id: str, **options: str | None) -> dict[str, Any]:
        """The log so far as `{"lines": […]}`; options: tail, stream, attempt, timestamps."""
        lines: dict[str, Any] = self.json(
            "GET", job_path(job_id) + "/logs", params=_given(options), headers={"Accept": "application/json"}
        )
        return lines

    @contextmanager
    def log_bytes(self, job_id: str, **options: str | None) -> Iterator[tuple[Mapping[str, str], Iterator[bytes]]]:
        """The answer's headers and the log so far, byte for byte; options: tail, stream, attempt, timestamps."""
        asked = {"raw": "true", **_given(options)}
        headers = {"Accept": "application/octet-stream"}
        with self.open("GET", job_path(job_id) + "/logs", params=asked, headers=headers, stream=True) as answer:
            yield answer.headers, self.pieces(answer, 65_536)

    @contextmanager
    def log_events(self, job_id: str, last_id: str | None, **options: str | None) -> Iterator[Iterator[bytes]]:
        """One connection to the live log as raw event-stream bytes, from after the event `last_id`."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        with self.open("GET", job_path(job_id) + "/logs", params={"follow": "true", **_given(options)},
                        headers=headers, stream=True) as answer:  # fmt: skip
            yield self.pieces(answer, None)

    def events(self, after: str, job_id: str | None = None, **options: str | None) -> dict[str, Any]:
        """One page of the changes of jobs (or of one) behind the cursor `after`; options: tenant, type, limit."""
        path = "/events" if job_id is None else job_path(job_id) + "/events"
        page: dict[str, Any] = self.json("GET", path, params={"after": after, **_given(options)})
        return page

    @contextmanager
    def event_stream(
        self, after: str, last_id: str | None, job_id: str | None = None, **options: str | None
    ) -> Iterator[Iterator[bytes]]:
        """One connection to the changes of jobs as raw event-stream bytes, from behind the event `last_id`."""
        path = "/events/stream" if job_id is None else job_path(job_id) + "/events/stream"
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        with self.open("GET", path, params={"after": after, **_given(options)},
                        headers=headers, stream=True) as answer:  # fmt: skip
            yield self.pieces(answer, None)

    def wait(self, job_id: str, timeout_s: float | None, changed: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """The job once it has ended; `changed` sees it whenever its state differs from the last one seen.

        Outlasts a server that is away for up to 30 s (restarts). Raises Failure TIMEOUT after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        occasions = self._occasions(job_id, deadline)
        return self._until_ended(lambda: self.job(job_id), occasions, f"job {job_id}", timeout_s, changed)

    def wait_array(
        self, array_id: str, timeout_s: float | None, changed: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """The array once all of its indices have ended; otherwise as `wait`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        occasions = self._occasions(None, deadline)
        return self._until_ended(lambda: self.array(array_id), occasions, f"array {array_id}", timeout_s, changed)

    def _until_ended(
        self,
        look: Callable[[], dict[str, Any]],
        occasions: Iterator[None],
        name: str,
        timeout_s: float | None,
        changed: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        seen, away_since = "", None
        for _ in occasions:
            try:
                job = look()
                away_since = None
                if state_words(job) != seen:
                    seen = state_words(job)
                    changed(job)
                if job["status"] in TERMINAL_WORDS:
                    return job
            except Failure as failure:
                away_since = time.monotonic() if away_since is None else away_since
                if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - away_since > 30.0:
                    raise
        raise Failure(
            ExitCode.TIMEOUT, f"{name} is still {seen or 'unknown'} after {round(timeout_s or 0.0, 3):.15g} s"
        )

    def _occasions(self, job_id: str | None, deadline: float | None) -> Iterator[None]:
        """The moments at which to look at a job, until `deadline`: soon and often, then when the server tells of news.

        Of an array (None) nothing is told, and a look at it is short.

        A look at a job brings its output along, which is too much to ask for every two seconds of a long one.
        """
        pause_s = SHORTEST_LOOK_S
        while True:
            yield
            left_s = math.inf if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                return
            if job_id is not None and pause_s >= LONGEST_LOOK_S and left_s > 2 * READ_TIMEOUT_S:
                yield from self._news(job_id, math.inf if deadline is None else deadline - READ_TIMEOUT_S)
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)

    def _news(self, job_id: str, until: float) -> Iterator[None]:
        """One stream of the job's changes, as long as it holds and a heartbeat does not come after `until`."""
        try:
            with self.open("GET", job_path(job_id) + "/events/stream", stream=True) as answer:
                for event in parse(self.pieces(answer, None)):
                    if event is not None:
                        yield
                    elif time.monotonic() > until:
                        return
        except Failure:
            # Streams may all be taken, or the server away: looking every now and then does it too.
            return


def token_of(settings: Settings, server_url: str) -> str:
    """The token to send: CFAB_API_TOKEN, else the one that `cfab up` made in its data directory, else none.

    The file's token opens this machine's own stack, so that it is sent to loopback addresses only.
    """
    if settings.api_token:
        return settings.api_token
    path = settings.data / "secrets" / "api_token"
    if not is_loopback(urlsplit(server_url).hostname or ""):
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        raise Failure(ExitCode.USAGE, f"the token in {path} cannot be read: {exc.strerror}") from exc


def state_words(job: Mapping[str, Any]) -> str:
    """The job's state as the fabric knows it, finer than the contract's status."""
    return str(job.get("state_detail") or job["status"])


def _given(options: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}
