"""The blueprint to which the modules of routes of the compute contract add theirs."""

from __future__ import annotations

from app.api.arguments import Blueprint

blueprint = Blueprint("compute", __name__, description="Run container images; read their output; stop them.")
