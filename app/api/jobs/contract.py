"""The jobs contract: the native one, where everything that only this fabric has is reached."""

from __future__ import annotations

from app.api.contract import Contract
from app.api.jobs import (
    admin_routes,
    array_routes,
    checkpoint_routes,
    control_routes,
    event_routes,
    executor_routes,
    explain_routes,
    image_routes,
    log_routes,
    node_routes,
    plan_routes,
    routes,
    sample_routes,
    tenant_routes,
)
from app.api.jobs.blueprint import blueprint
from app.api.jobs.schemas import ErrorShown
from app.api.jobs.translate import JobsErrorForm

ROUTES = (routes, executor_routes, admin_routes, log_routes, event_routes, tenant_routes, explain_routes, sample_routes,
          node_routes, plan_routes, image_routes, control_routes, checkpoint_routes,
          array_routes)  # fmt: skip
"""The modules that add the contract's routes to its blueprint when they are imported."""

CONTRACT = Contract(
    name="jobs",
    title="Compute Fabric: jobs",
    at="/jobs/api/v1",
    blueprint=blueprint,
    errors=JobsErrorForm(),
    error_schema=ErrorShown,
)
