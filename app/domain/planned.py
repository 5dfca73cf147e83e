"""What the planner noted of a waiting job, as a sentence for its user."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from app.domain.tenant import amount

Numbers = Mapping[str, int | float | str | None]


def sentence_of(reason: str, numbers: Numbers) -> str:
    """What a note says. A word that nobody knows stands for itself."""
    tell = _SENTENCES.get(reason)
    return f"The planner left it for now: {reason}." if tell is None else tell(numbers)


def _members(numbers: Numbers) -> str:
    count = numbers.get("members")
    return "it" if count in (None, 1) else f"all {count} members"


def _seconds(value: int | float | str | None) -> str:
    return f"{float(value):.0f} s" if value is not None else ""


def _reserved(numbers: Numbers) -> str:
    nodes = numbers.get("nodes")
    where = "one node" if nodes == 1 else f"{nodes} nodes"
    starts = numbers.get("starts_in_s")
    when = "as soon as that is free" if starts is None else f"in {_seconds(starts)} at the latest"
    fits = numbers.get("members_that_fit")
    now = "" if fits is None or numbers.get("members") == 1 else f" {fits} would fit now."
    return f"Room is kept on {where} for {_members(numbers)}; it starts {when}.{now}"


def _preempting(numbers: Numbers) -> str:
    victims = numbers.get("victims")
    if not victims:
        who = "Others were told to make room and are ending"
    else:
        jobs = "job of lower rank was" if victims == 1 else "jobs of lower rank were"
        who = f"{victims} running {jobs} told to make room"
    starts = _seconds(numbers.get("starts_in_s"))
    return f"{who}; what is given back is kept for it, and it starts in {starts} at the latest."


def _amount(numbers: Numbers, name: str) -> str:
    return amount(str(numbers.get("limit")), max(0, int(numbers.get(name) or 0)))


def _no_room(numbers: Numbers) -> str:
    return f"Of {_members(numbers)} {numbers.get('members_that_fit')} would fit now; nothing is kept for it yet."


_SENTENCES: Mapping[str, Callable[[Numbers], str]] = {
    "reserved": _reserved,
    "preempting": _preempting,
    "no_room": _no_room,
    "too_large": lambda n: (
        f"The nodes of the fabric, were they empty, would hold {n.get('empty_fabric_holds')} of {n.get('members')}"
        " members."
    ),
    "quota": lambda n: f"Its tenant's quota of {n.get('limit')} has {n.get('left')} left; it needs {n.get('needs')}.",
    "quota_kept": lambda n: (
        f"Its tenant's quota has {_amount(n, 'left')} left of the {_amount(n, 'needs')} that it needs; what comes free"
        " is kept for it, whatever else of its tenant waits."
    ),
    "quota_behind": lambda n: (
        f"Its tenant's quota has {_amount(n, 'left')} left; {_amount(n, 'kept')} are kept for job {n.get('job')}, which"
        f" has waited too long, and this one needs {_amount(n, 'needs')}."
    ),
    "undecided": lambda n: "Its tenant's quota is being decided elsewhere at this moment.",
    "claim": lambda n: f"Node {n.get('node')} has room and takes it at its next claim.",
    "reservations_used": lambda n: f"Room is kept for {n.get('max_reservations')} jobs before it already.",
    "behind": lambda n: (
        f"What is kept for jobs before it on {n.get('nodes_with_reservations')} nodes leaves too little for"
        f" {_members(n)}."
    ),
}
