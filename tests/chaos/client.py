"""A user who does not give up: submits jobs under idempotency keys and stops some, whatever happens to the API."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import requests

from tests.chaos.workload import Planned

TRY_FOR_S = 180.0
RETRY_S = 0.2


class GaveUp(RuntimeError):
    """The API refused something that it must not refuse, or did not come back."""


class Client:
    """Calls the API until it answers; sends each request again with the same key."""

    def __init__(self, base_url: str, token: str) -> None:
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {token}"}
        self.closed = threading.Event()
        self.repeats = 0
        self.ids: dict[str, str] = {}
        """The id of each job that was accepted, by the key of its plan."""

    def submit(self, job: Planned) -> str:
        """Makes one job durable; its id."""
        answer = self._until("/jobs", job.body, {201}, job.key)
        self.ids[job.key] = str(answer["id"])
        return self.ids[job.key]

    def submit_together(self, jobs: Sequence[Planned]) -> None:
        """Makes several jobs durable in one request."""
        answer = self._until("/jobs/bulk", [job.body for job in jobs], {201}, f"bulk-{jobs[0].key}")
        self.ids |= {job.key: str(one["id"]) for job, one in zip(jobs, answer, strict=True)}

    def stop(self, job_id: str) -> None:
        """Stops a job; one that has ended already is fine."""
        self._until(f"/jobs/{job_id}/stop", {"reason": "chaos"}, {200, 400}, None)

    def _until(self, path: str, body: Any, accepted: set[int], key: str | None) -> Any:
        headers = {**self._headers, **({"Idempotency-Key": key} if key else {})}
        give_up_at = time.monotonic() + TRY_FOR_S
        said = "nothing"
        while time.monotonic() < give_up_at and not self.closed.is_set():
            try:
                answer = requests.post(self._base_url + path, json=body, headers=headers, timeout=3)
                if answer.status_code in accepted:
                    return answer.json()
                said = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code not in {409, 429, 500, 502, 503, 504}:
                    break
            except (requests.RequestException, ValueError) as exc:
                said = repr(exc)
            self.repeats += 1
            self.closed.wait(RETRY_S)
        raise GaveUp(f"POST {path} was never accepted: {said}")


class Crowd:
    """Submits a run's jobs over a stretch of time, and stops those that are to be stopped, in a thread of its own."""

    def __init__(self, client: Client, jobs: Sequence[Planned], seconds: float) -> None:
        self._client = client
        self._jobs = jobs
        self._pause_s = seconds / max(1, len(jobs))
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)

    def start(self) -> None:
        """Begins to submit."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether everything has been asked for."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Gives up what has not been asked yet."""
        self._client.closed.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            self._ask()
        except Exception as exc:
            self.problem = f"{type(exc).__name__}: {exc}"

    def _ask(self) -> None:
        together = len(self._jobs) // 4
        if together:
            self._client.submit_together(self._jobs[:together])
        for job in self._jobs[together:]:
            self._client.submit(job)
            self._client.closed.wait(self._pause_s)
        for job in self._jobs:
            if job.kind == "stopped":
                self._client.stop(self._client.ids[job.key])
                self._client.closed.wait(self._pause_s)
