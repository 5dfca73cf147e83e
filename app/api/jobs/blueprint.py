"""The blueprint to which the modules of routes of the jobs contract add theirs."""

from __future__ import annotations

from app.api.arguments import Blueprint

blueprint = Blueprint("jobs", __name__, description="Submit jobs, watch them, stop them.")
