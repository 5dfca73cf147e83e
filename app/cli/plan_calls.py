"""What `cfab` asks and tells of planning over HTTP; a part of its client."""

from __future__ import annotations

from typing import Any

from app.cli.connection import Connection
from app.cli.paths import job_path

PAGE = 1000


class PlanCalls(Connection):
    """Calls about the planner; they raise Failure as those of the client do."""

    def checkpoint(self, job_id: str) -> dict[str, Any]:
        """Tell that a running job has saved its work just now; the answer of the server is empty."""
        with self.open("POST", job_path(job_id) + "/checkpoint"):
            return {"id": job_id, "checkpoint": "reported"}

    def plan(self) -> dict[str, Any]:
        """What the planner does, with all pages of what it reserved, of quotas that are kept, and of who makes room.

        What changes between two pages may show twice or not at all.
        """
        plan = self._plan_page(0)
        # A server of an older version keeps no quotas.
        lists = [name for name in ("reservations", "quota_holds", "making_room") if name in plan]
        offset = PAGE
        while any(len(plan[name]) < plan[f"{name}_total"] for name in lists):
            page = self._plan_page(offset)
            if not any(page[name] for name in lists):
                break
            for name in lists:
                plan[name] += page[name]
            offset += PAGE
        return plan

    def _plan_page(self, offset: int) -> dict[str, Any]:
        found: dict[str, Any] = self.json("GET", "/plan", params={"limit": str(PAGE), "offset": str(offset)})
        return found
