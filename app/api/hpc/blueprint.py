"""The blueprints of the hpc contract: its routes below its prefix, and `/metrics` beside it."""

from __future__ import annotations

from app.api.arguments import Blueprint

blueprint = Blueprint("hpc", __name__, description="Watch jobs, wherever they run, and what they use.")
beside = Blueprint("hpc_beside", __name__, description="What the document puts outside the prefix.")
