"""Gangs for tests: nodes that take them, members placed by the real service and claimed by their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from app.domain.job import Assignment
from app.domain.priority import PriorityClass
from app.domain.resources import Gpu
from app.services.gangs import Prepared, report_prepared
from app.services.place import Placed, Spot, place
from tests.factories import Fabric, Node

RUNNERS = ("process", "gang-process")


def gang_node(fabric: Fabric, name: str, gpus: Sequence[Gpu] = (), **changes: Any) -> Node:
    """A node that takes members of gangs."""
    return fabric.add_node(name, gpus=gpus, runners=RUNNERS, **changes)


def place_on(fabric: Fabric, job_id: UUID, *spots: str | Spot, lease_s: float = 60.0) -> Placed:
    """Places member i on spot i (a node's name where it gets no GPUs)."""
    wanted = [spot if isinstance(spot, Spot) else Spot(spot) for spot in spots]
    return place(fabric.db, job_id, wanted, PriorityClass.FOREGROUND, lease_s)


def assemble(fabric: Fabric, *nodes: Node, **changes: Any) -> list[Assignment]:
    """A gang with one member on each of `nodes` (which may repeat), claimed; the assignments by member."""
    job_id = fabric.submit_one(members=len(nodes), **changes)
    return assemble_again(fabric, job_id, *nodes)


def assemble_again(fabric: Fabric, job_id: UUID, *nodes: Node) -> list[Assignment]:
    """`assemble` for a job that waits."""
    placed = place_on(fabric, job_id, *(node.id for node in nodes))
    assert placed.nodes == {node.id for node in nodes}, placed.refusal
    taken = [one for node in {node.id: node for node in nodes}.values() for one in fabric.claim(node)]
    mine = sorted((one for one in taken if one.job_id == job_id), key=lambda one: one.gang.member if one.gang else 0)
    assert len(mine) == len(nodes)
    return mine


def prepare(fabric: Fabric, *members: Assignment) -> set[UUID]:
    """These members are ready to start, member 0 at port 29500."""
    return report_prepared(
        fabric.db,
        [
            Prepared(one.attempt_id, one.token, "192.0.2.1", 29500 if one.gang and one.gang.member == 0 else None)
            for one in members
        ],
    )


def leader_of(members: Sequence[Assignment]) -> UUID:
    """By what the gang is known."""
    assert members[0].gang is not None
    return members[0].gang.leader_id
