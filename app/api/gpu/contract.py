"""The gpu contract."""

from __future__ import annotations

from app.api.contract import Contract
from app.api.gpu import event_routes, routes
from app.api.gpu.blueprint import beside, blueprint
from app.api.gpu.schemas import ErrorShown
from app.api.gpu.translate import GpuErrorForm

ROUTES = (routes, event_routes)
"""The modules that add the contract's routes to its blueprints when they are imported."""

CONTRACT = Contract(
    name="gpu",
    title="Compute Fabric: gpu",
    at="/gpu/api/v1",
    blueprint=blueprint,
    errors=GpuErrorForm(),
    error_schema=ErrorShown,
    outside=(beside,),
)
