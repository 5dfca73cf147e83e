"""The blueprints to which the modules of routes of the gpu contract add theirs."""

from __future__ import annotations

from app.api.arguments import Blueprint

blueprint = Blueprint("gpu", __name__, description="Jobs on GPUs, tenants and their quotas, the cluster.")
beside = Blueprint("gpu_beside", __name__, description="What the document puts beside the prefix.")
