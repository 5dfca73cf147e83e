"""Why a gang waits: room for all its members at once, over all nodes. Pure, like explain.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.domain import amounts
from app.domain.explain import Ask, Cause, Code, Fit, NodeNow
from app.domain.resources import Free, Resources

NAMED = 8


def gang_causes(order: Sequence[tuple[NodeNow, Fit]], ask: Ask, members: int, note: str | None) -> list[Cause] | None:
    """What of the nodes (as `nearest` gives them) keeps a gang of `members` waiting; None when no node could ever run
    one member, which is explained as for any job. `note` is what the planner said of it last."""
    able = [node for node, fit in order if fit in {Fit.FITS, Fit.BUSY}]
    if not able:
        return None
    now = {node.id: room for node in able if (room := seats(node.free, ask.need, members))}
    ever = sum(seats(node.total, ask.need, members) for node in able)
    numbers: dict[str, Any] = {
        "members": members, "room_now": sum(now.values()), "room_ever": ever, "nodes": len(able), "room": now,
    }  # fmt: skip
    each = f"{members} members that each ask {amounts.share(ask.need)}"
    if ever < members:
        message = (
            f"The job has {each}, and all nodes that take jobs have room for {ever} of them even when nothing else "
            "runs: it waits until there are more."
        )
        return [Cause(Code.GANG_TOO_BIG, message, numbers)]
    said = f" The planner: {note}" if note else ""
    if numbers["room_now"] < members:
        where = ", ".join(f"{room} on {name}" for name, room in [*now.items()][:NAMED]) or "none"
        message = f"The job has {each} and start together; there is room for {numbers['room_now']} now ({where}).{said}"
        return [Cause(Code.GANG_ROOM, message, numbers)]
    message = f"There is room for all {members} members: the planner places them at its next look.{said}"
    return [Cause(Code.STARTS_NOW, message, numbers)]


def seats(free: Free, need: Resources, most: int) -> int:
    """How many allocations of `need` fit together, up to `most`."""
    found = 0
    while found < most and free.fits(need):
        free, _given = free.take(need)
        found += 1
    return found
