"""Where the API has each thing: the paths of jobs, arrays, nodes and tenants, made from what a user typed."""

from __future__ import annotations

from urllib.parse import quote

from app.cli.failure import ExitCode, Failure


def job_path(job_id: str) -> str:
    """Where a job is; raises Failure USAGE as `part` does, like all of these."""
    return "/jobs/" + part("id of a job", job_id)


def array_path(array_id: str) -> str:
    """Where an array is."""
    return "/arrays/" + part("id of an array", array_id)


def node_path(name: str) -> str:
    """Where a node is."""
    return "/nodes/" + part("name of a node", name)


def tenant_path(name_or_id: str) -> str:
    """Where a tenant is."""
    return "/tenants/" + part("name of a tenant", name_or_id)


def part(what: str, name: str) -> str:
    """One part of a path, quoted.

    An empty name would ask for the whole list, and dots and slashes for something else altogether: servers and
    clients resolve them even when they are quoted. Raises Failure USAGE for those.
    """
    if name.strip() in {"", ".", ".."} or "/" in name:
        raise Failure(ExitCode.USAGE, f"{name!r} is no {what}", {"given": name})
    return quote(name, safe="")
