"""Room for a job that fits nowhere, by telling others to end: the set of victims that loses the least work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from scheduler.planner.ask import Ask
from scheduler.planner.host import Host
from scheduler.planner.hosts import Hosts
from scheduler.planner.outcome import Seat
from scheduler.planner.snapshot import Running, Waiting
from scheduler.planner.victims import Victim, Victims

MOST_TRIES = 4000
"""Sets of victims that are looked at on one host; beyond it the best found so far counts. Eight victims have 256."""

Amounts = tuple[int, int, int, int]
"""Slots, CPUs, memory and suiting GPUs."""


@dataclass(frozen=True, slots=True)
class Rung:
    """So many members fit on the host if these victims go; what that loses."""

    host: Host
    members: int
    victims: tuple[Victim, ...]
    lost_gpu_s: float


@dataclass(frozen=True, slots=True)
class Eviction:
    """Who goes, and where the job's members will sit. No victims: those who were told before make the room."""

    victims: tuple[Victim, ...]
    seats: tuple[tuple[Host, Seat], ...]
    free_at: float


@dataclass
class _Base:
    """What a host has to spare once those that were told to stop are gone, and what each victim adds."""

    host: Host
    amounts: Amounts
    adds: list[tuple[Victim, Amounts]]


def evict(job: Waiting, ask: Ask, hosts: Hosts, victims: Victims, now: float) -> Eviction | None:
    """The victims that lose the least work among all sets that make room for every member; None if none does.

    On hosts that the job is to avoid only if no set on the others makes the room.

    Exact for one member. For gangs exact too as long as no victim is a gang that spans several of the hosts: such a one
    is counted on each of them, and those of the set that are not needed after all are let go again.
    """
    return _evict(job, ask, hosts, victims, now, job.avoid) or (
        _evict(job, ask, hosts, victims, now, frozenset()) if job.avoid else None
    )


def _evict(
    job: Waiting, ask: Ask, hosts: Hosts, victims: Victims, now: float, avoid: frozenset[str]
) -> Eviction | None:
    bases = list(_bases(job, ask, hosts, victims, avoid))
    if job.members == 1:
        chosen = _cheapest(bases, ask)
    else:
        most = job.max_per_node or job.members
        chosen = _choose([rung for base in bases for rung in _ladder(base, ask, most)], job.members)
    if chosen is None:
        return None
    gone = _fill_back(chosen, bases, ask, job)
    seats = _seats(chosen, bases, ask, gone, job)
    ends = [run.grace_s for rung in chosen for run in rung.host.held if run.stopping or _id(run) in gone]
    return Eviction(tuple(gone.values()), seats, now + max(ends, default=0.0))


def _bases(job: Waiting, ask: Ask, hosts: Hosts, victims: Victims, avoid: frozenset[str]) -> Iterator[_Base]:
    by_node = victims.of(job)
    for host in hosts.all:
        if job.runner not in host.view.runners or host.view.id in avoid:
            continue
        gpus = ask.suiting(host.spare_gpus, host.uniform)
        amounts = host.spare_slots, host.spare_cpus, host.spare_memory, gpus
        for run in host.leaving:
            amounts = _plus(amounts, _gain(host, run, ask))
        adds = [(victim, _gains(host, victim, ask)) for victim in by_node.get(host.view.id, ())]
        if adds or ask.times(*amounts):
            yield _Base(host, amounts, adds)


def _gains(host: Host, victim: Victim, ask: Ask) -> Amounts:
    if len(victim.members) == 1:
        return _gain(host, victim.members[0], ask)
    return _sum([_gain(host, run, ask) for run in victim.members if run.node_id == host.view.id])


def _gain(host: Host, run: Running, ask: Ask) -> Amounts:
    return 1, run.shape.cpus_milli, run.shape.memory_bytes, host.freed_by(run, ask)


def _plus(one: Amounts, other: Amounts) -> Amounts:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    slots = cpus = memory = gpus = 0
    for one in amounts:
        slots += one[0]
        cpus += one[1]
        memory += one[2]
        gpus += one[3]
    return slots, cpus, memory, gpus


def _cheapest(bases: list[_Base], ask: Ask) -> list[Rung] | None:
    """The cheapest set on any one host."""
    best: Rung | None = None
    for base in bases:
        found = _least(base, ask, 1, best.lost_gpu_s if best else None)
        if found is not None and (best is None or _weight(found) < _weight(best)):
            best = found
    return None if best is None else [best]


def _weight(rung: Rung) -> tuple[float, int]:
    return rung.lost_gpu_s, len(rung.victims)


def _ladder(base: _Base, ask: Ask, most: int) -> Iterator[Rung]:
    """The cheapest set for each number of members that the host can have."""
    for members in range(1, min(most, ask.times(*_total(base))) + 1):
        found = _least(base, ask, members, None)
        if found is not None:
            yield found


def _total(base: _Base) -> Amounts:
    """What there is once every victim is gone."""
    return _sum([base.amounts, *(amounts for _victim, amounts in base.adds)])


def _least(base: _Base, ask: Ask, members: int, bound: float | None) -> Rung | None:
    """The cheapest set of victims on this host for so many members, below `bound`; by branch and bound."""
    if ask.times(*_total(base)) < members:
        return None
    after, rates = _suffixes(base, ask)
    best: tuple[float, int] | None = None if bound is None else (bound, 0)
    found: tuple[Victim, ...] | None = None
    tries = 0
    stack: list[tuple[int, Amounts, float, tuple[Victim, ...]]] = [(0, base.amounts, 0.0, ())]
    while stack and tries < MOST_TRIES:
        tries += 1
        at, have, lost, chosen = stack.pop()
        if best is not None and (lost + rates[at] * _lacks(have, ask, members), len(chosen)) >= best:
            continue
        if ask.times(*have) >= members:
            best, found = (lost, len(chosen)), chosen
            continue
        if at == len(base.adds) or ask.times(*_plus(have, after[at])) < members:
            continue
        victim, amounts = base.adds[at]
        stack.append((at + 1, have, lost, chosen))
        # Looked at first: taking the cheap ones soon gives a bound that cuts most of the rest.
        stack.append((at + 1, _plus(have, amounts), lost + victim.lost_gpu_s, (*chosen, victim)))
    return None if found is None or best is None else Rung(base.host, members, found, best[0])


def _suffixes(base: _Base, ask: Ask) -> tuple[list[Amounts], list[float]]:
    """What all victims from each on give together, and the least that any of them loses for a GPU, or for a CPU."""
    after, rates = [(0, 0, 0, 0)], [math.inf]
    for victim, amounts in reversed(base.adds):
        after.append(_plus(after[-1], amounts))
        gives = amounts[3] if ask.gpus else amounts[1]
        rates.append(min(rates[-1], victim.lost_gpu_s / gives if gives else math.inf))
    # Where nobody gives any, nothing is known of what the rest costs.
    return after[::-1], [0.0 if rate == math.inf else rate for rate in reversed(rates)]


def _lacks(have: Amounts, ask: Ask, members: int) -> int:
    """GPUs, or thousandths of CPUs for an ask without GPUs, that are missing."""
    return max(0, members * ask.gpus - have[3] if ask.gpus else members * ask.cpus_milli - have[1])


def _choose(rungs: list[Rung], members: int) -> list[Rung] | None:
    """One rung a host, so that all members sit and the least is lost: exact, by the sum over hosts."""
    per_host: dict[Host, list[Rung]] = {}
    for rung in _useful(rungs, members):
        per_host.setdefault(rung.host, []).append(rung)
    none: tuple[float, int, tuple[Rung, ...]] = (0.0, 0, ())
    best = {0: none}
    for ladder in per_host.values():
        for have, (lost, count, chosen) in sorted(best.items(), reverse=True):
            for rung in ladder:
                reach = min(members, have + rung.members)
                total = (lost + rung.lost_gpu_s, count + len(rung.victims))
                if reach > have and (reach not in best or total < best[reach][:2]):
                    best[reach] = (*total, (*chosen, rung))
    return list(best[members][2]) if members in best else None


def _useful(rungs: list[Rung], members: int) -> list[Rung]:
    """Of each height the cheapest: a set of at most so many hosts never needs another one."""
    by_height: dict[int, list[Rung]] = {}
    for rung in rungs:
        by_height.setdefault(rung.members, []).append(rung)
    return [rung for same in by_height.values() for rung in sorted(same, key=_weight)[:members]]


def _fill_back(chosen: list[Rung], bases: list[_Base], ask: Ask, job: Waiting) -> dict[UUID, Victim]:
    """The victims without those whose room is not needed after all, the dearest let go first."""
    known = {base.host: base for base in bases}
    gone = {victim.id: victim for rung in chosen for victim in rung.victims}
    for victim in sorted(gone.values(), key=lambda v: (-v.lost_gpu_s, v.id)):
        rest = gone.keys() - {victim.id}
        most = job.max_per_node or job.members
        room = (ask.times(*_with(known[rung.host], rest)) for rung in chosen)
        if sum(min(most, times) for times in room) >= job.members:
            del gone[victim.id]
    return gone


def _with(base: _Base, gone: set[UUID]) -> Amounts:
    return _sum([base.amounts, *(amounts for victim, amounts in base.adds if victim.id in gone)])


def _seats(
    chosen: list[Rung], bases: list[_Base], ask: Ask, gone: dict[UUID, Victim], job: Waiting
) -> tuple[tuple[Host, Seat], ...]:
    known = {base.host: base for base in bases}
    seats: list[tuple[Host, Seat]] = []
    for rung in chosen:
        host = rung.host
        going = {uuid for run in host.held if run.stopping or _id(run) in gone for uuid in _whole(run)}
        uuids = host.opened_by(going, ask) if ask.gpus else []
        times = min(job.max_per_node or job.members, ask.times(*_with(known[host], set(gone))))
        for i in range(min(times, job.members - len(seats))):
            seats.append((host, Seat(host.view.id, tuple(uuids[i * ask.gpus : (i + 1) * ask.gpus]))))
    return tuple(seats)


def _whole(run: Running) -> tuple[str, ...]:
    return () if run.shape.gpu_shared else run.gpu_uuids


def _id(run: Running) -> UUID:
    return run.leader or run.attempt_id
