"""The planner: from a snapshot of the fabric and the time to a plan. Pure: it reads no clock, no server, no setting."""

from scheduler.planner.cycle import plan
from scheduler.planner.outcome import Note, Placement, Plan, Preemption, QuotaHold, Seat
from scheduler.planner.snapshot import NodeView, Reserved, Rules, Running, Snapshot, Waiting

__all__ = [
    "NodeView",
    "Note",
    "Placement",
    "Plan",
    "Preemption",
    "QuotaHold",
    "Reserved",
    "Rules",
    "Running",
    "Seat",
    "Snapshot",
    "Waiting",
    "plan",
]
