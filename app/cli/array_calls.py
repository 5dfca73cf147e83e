"""What `cfab` asks of arrays over HTTP; a part of its client."""

from __future__ import annotations

from typing import Any

from app.cli.connection import Connection
from app.cli.paths import array_path


class ArrayCalls(Connection):
    """Calls about arrays; they raise Failure as those of the client do."""

    def arrays(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest arrays first."""
        found: list[dict[str, Any]] = self.json("GET", "/arrays", params={"limit": str(limit)})
        return found

    def array(self, array_id: str) -> dict[str, Any]:
        """One array with its counts."""
        shown: dict[str, Any] = self.json("GET", array_path(array_id))
        return shown

    def array_jobs(self, array_id: str, **options: str | None) -> list[dict[str, Any]]:
        """Jobs of an array by index; options: status, limit, offset."""
        found: list[dict[str, Any]] = self.json(
            "GET",
            array_path(array_id) + "/jobs",
            params={name: value for name, value in options.items() if value is not None},
        )
        return found

    def change_array(self, array_id: str, action: str, **asked: Any) -> dict[str, Any]:
        """Cancel or retry an array, or some of its indices; what came of it."""
        body = {name: value for name, value in asked.items() if value is not None}
        done: dict[str, Any] = self.json("POST", f"{array_path(array_id)}/{action}", json=body)
        return done
