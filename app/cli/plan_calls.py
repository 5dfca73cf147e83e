"""What `cfab` asks and tells of planning over HTTP; a part of its client."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import requests


class PlanCalls:
    """Calls about the planner; they raise Failure as those of the client do."""

    def _open(self, method: str, path: str, **options: Any) -> AbstractContextManager[requests.Response]:
        raise NotImplementedError  # The client's own.

    def checkpoint(self, job_id: str) -> dict[str, Any]:
        """Tell that a running job has saved its work just now; the answer of the server is empty."""
        with self._open("POST", f"/jobs/{quote(job_id, safe='')}/checkpoint"):
            return {"id": job_id, "checkpoint": "reported"}
