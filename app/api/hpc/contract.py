"""The hpc contract."""

from __future__ import annotations

from app.api.contract import Contract
from app.api.hpc import metrics_routes, routes
from app.api.hpc.blueprint import beside, blueprint
from app.api.hpc.schemas import ErrorShown
from app.api.hpc.translate import HpcErrorForm

ROUTES = (routes, metrics_routes)
"""The modules that add the contract's routes to its blueprints when they are imported."""

CONTRACT = Contract(
    name="hpc",
    title="Compute Fabric: hpc",
    at="/v1",
    blueprint=blueprint,
    errors=HpcErrorForm(),
    error_schema=ErrorShown,
    outside=(beside,),
)
