"""Whether any registered node could ever run a job, however long it waits: the same `fit_of` as an explanation's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from app.domain import amounts
from app.domain.explain import EVER, Ask, Cause, Code, NodeNow, impossible, nearest
from app.domain.resources import Free


def never_cause(nodes: Sequence[NodeNow], ask: Ask, members: int = 1) -> Cause | None:
    """Why no node could run the job even when it is empty, back and repaired; None when some could.

    Also None while no agent has ever registered: then nothing is known yet. All `members` of a gang must have room.
    """
    if all(node.external for node in nodes):
        return None
    order = nearest(nodes, ask)
    able = [node for node, fit in order if fit in EVER]
    if not able:
        return impossible(order, ask)
    room = members if members == 1 else sum(_seats(whole(node), ask, members) for node in able)
    if room >= members:
        return None
    message = (
        f"The job has {members} members that each ask {amounts.share(ask.need)}, and all registered nodes together "
        f"have room for {room} of them."
    )
    return Cause(Code.TOO_BIG, message, {"members": members, "room_ever": room, "nodes": len(able)})


def whole(node: NodeNow) -> NodeNow:
    """The node as if none of its GPUs were out."""
    gpus = tuple(replace(gpu, healthy=True) for gpu in node.total.gpus)
    return replace(node, total=replace(node.total, gpus=gpus))


def distinct(nodes: Iterable[NodeNow]) -> list[NodeNow]:
    """One node of each kind: hosts that differ in their names alone could run the same jobs.

    Only for jobs of one member: a gang counts nodes.
    """
    kinds: dict[object, NodeNow] = {}
    for node in nodes:
        gpus = sorted((gpu.model, gpu.memory_bytes, gpu.sharing, gpu.healthy) for gpu in node.total.gpus)
        total = node.total
        kind = (node.external, node.runners, total.slots, total.cpus_milli, total.memory_bytes, tuple(gpus))
        kinds.setdefault(kind, node)
    return list(kinds.values())


def _seats(node: NodeNow, ask: Ask, most: int) -> int:
    free: Free = node.total
    seats = 0
    while seats < most and free.fits(ask.need):
        free, _given = free.take(ask.need)
        seats += 1
    return seats
