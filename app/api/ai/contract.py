"""The ai contract."""

from __future__ import annotations

from app.api.ai import fabric_routes, log_routes, routes
from app.api.ai.blueprint import blueprint
from app.api.ai.schemas import ErrorShown
from app.api.ai.translate import AiErrorForm
from app.api.contract import Contract

ROUTES = (routes, log_routes, fabric_routes)
"""The modules that add the contract's routes to its blueprint when they are imported."""

CONTRACT = Contract(
    name="ai",
    title="Compute Fabric: ai",
    at=routes.AT,
    blueprint=blueprint,
    errors=AiErrorForm(),
    error_schema=ErrorShown,
)
