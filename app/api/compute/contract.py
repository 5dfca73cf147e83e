"""The compute contract."""

from __future__ import annotations

from app.api.compute import log_routes, routes
from app.api.compute.blueprint import blueprint
from app.api.compute.schemas import ErrorShown
from app.api.compute.translate import ComputeErrorForm
from app.api.contract import Contract

ROUTES = (routes, log_routes)
"""The modules that add the contract's routes to its blueprint when they are imported."""

CONTRACT = Contract(
    name="compute",
    title="Compute Fabric: compute",
    at="/api/v1/runtime/compute",
    blueprint=blueprint,
    errors=ComputeErrorForm(),
    error_schema=ErrorShown,
)
