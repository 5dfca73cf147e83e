"""The blueprint to which the modules of routes of the ai contract add theirs."""

from __future__ import annotations

from app.api.arguments import Blueprint

blueprint = Blueprint("ai", __name__, description="AI jobs, queues and clusters.")
