"""Every property of a plan on many small fabrics; and each on a planner with a planted bug, which it must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from app.domain.policy import Room, TenantView
from app.domain.priority import PriorityClass
from app.domain.tenant import Tier
from scheduler.planner import Snapshot, cycle, hosts, plan, preempt, seats, victims
from scheduler.planner.cycle import _Cycle
from scheduler.planner.host import Host
from scheduler.planner.hosts import Hosts
from scheduler.planner.line import Line
from scheduler.planner.quotas import Quotas
from tests.unit.scheduler.planner import properties
from tests.unit.scheduler.planner.worlds import NOW, running, snapshots

SLOW = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]
ANY = snapshots()
LONE = snapshots(most_waiting=1).filter(lambda snapshot: len(snapshot.waiting) == 1)


def _urgent(snapshot: Snapshot, members: int | None = 1) -> Snapshot:
    """The same with one job that may preempt most of what runs. `members` None leaves its gang as it is."""
    job = replace(
        snapshot.waiting[0], can_preempt=True, tier=Tier.CRITICAL, priority_class=PriorityClass.FOREGROUND,
        priority=5000, members=members or snapshot.waiting[0].members,
    )  # fmt: skip
    live = [replace(run, preemptible=True, started_at=(run.started_at or NOW) - 70) for run in snapshot.running]
    held = {uuid for run in live for uuid in run.gpu_uuids}
    # Somebody who may not be preempted holds all that is free: room comes from victims alone.
    for number, at in enumerate(snapshot.nodes):
        free = tuple(gpu.uuid for gpu in at.gpus if gpu.uuid not in held)
        live.append(running(100 + number, at.id, free, limit_s=None))
    nodes = tuple(replace(at, slots=at.slots + 1, cpus_milli=at.cpus_milli + 1000) for at in snapshot.nodes)
    tenants = {tenant: TenantView() for tenant in snapshot.tenants}
    return replace(snapshot, nodes=nodes, waiting=(job,), running=tuple(live), reserved=(), tenants=tenants)


PREEMPTING = LONE.map(_urgent)
# A gang among the victims may span nodes and is then counted on each: for gangs the least is promised without those.
PREEMPTING_GANGS = LONE.filter(lambda s: all(run.leader is None for run in s.running)).map(lambda s: _urgent(s, None))


def _crowded(snapshot: Snapshot) -> Snapshot:
    """Everything that waits is of one tenant that may hold little more."""
    (tenant, view), *others = snapshot.tenants.items()
    waiting = tuple(replace(job, tenant_id=tenant) for job in snapshot.waiting)
    few = (Room(jobs=2), Room(jobs=4)) if view.room is None else (view.room, view.quota)
    tight = {tenant: replace(view, room=few[0], quota=few[1]), **dict(others)}
    return replace(snapshot, waiting=waiting, tenants=tight)


PROPERTIES: dict[Callable[..., None], Any] = {
    properties.never_over_commits: ANY,
    properties.never_breaks_a_quota: ANY | ANY.map(_crowded),
    properties.never_half_a_gang: ANY,
    properties.never_a_victim_outside_policy: ANY,
    properties.preempts_the_least: PREEMPTING,
    properties.a_lower_class_changes_nothing: ANY,
    properties.a_freed_node_delays_no_higher_job: LONE,
    properties.the_order_of_rows_decides_nothing: ANY,
}


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_a_plan(holds: Callable[..., None]) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
    @given(PROPERTIES[holds])
    def check(snapshot: Snapshot) -> None:
        holds(plan, snapshot)

    check()


def test_the_smallest_set_of_victims_for_gangs() -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
    @given(PREEMPTING_GANGS)
    def check(snapshot: Snapshot) -> None:
        properties.preempts_the_least(plan, snapshot)

    check()


def _pays_nothing(self: Host, *_: object) -> None:
    """Nothing that starts takes anything."""


def _everyone(bases: Any) -> Any:
    """All that may go."""
    return {victim.id: victim for base in bases for victim, _amounts in base.adds}


def _without_the_freest(self: Hosts, gpus: int) -> Iterator[Host]:
    """Overlooks hosts that are quite free."""
    return (host for host in _tightest(self, gpus) if host.held or len(host.view.gpus) < 4)


def _worst_class_first(self: Line) -> Any:
    return reversed(list(_in_line(self)))


_in_line = Line.__iter__
_pack = seats.pack
_tightest = Hosts.tightest_first
_BUGS: list[tuple[Callable[..., None], Any, str, Any]] = [
    (properties.never_over_commits, Host, "take", _pays_nothing),
    (properties.never_over_commits, Host, "reserve", lambda self, held: self.reserved.append(held)),
    (properties.never_over_commits, Host, "hole_for", lambda self, ask, end: (self.spare_for(ask) + 1, self.free_gpus)),
    (properties.never_breaks_a_quota, _Cycle, "_charge", lambda self, job: None),
    (properties.never_breaks_a_quota, Quotas, "_room", lambda self, job: self._rooms.get(job.tenant_id, Room())),
    (properties.never_half_a_gang, seats, "pack", lambda room, members: _pack(room, members - 1)),
    (properties.never_a_victim_outside_policy, victims, "may_preempt", lambda job, run: job.can_preempt),
    (properties.never_a_victim_outside_policy, victims, "_ripe", lambda run, now, rules: run.preemptible),
    (properties.preempts_the_least, preempt, "_weight", lambda rung: (-rung.lost_gpu_s, 0)),
    (properties.preempts_the_least, preempt, "_fill_back", lambda chosen, bases, ask, job: _everyone(bases)),
    (properties.a_lower_class_changes_nothing, Line, "__iter__", _worst_class_first),
    (properties.a_freed_node_delays_no_higher_job, Hosts, "tightest_first", _without_the_freest),
    (properties.the_order_of_rows_decides_nothing, hosts, "sorted", lambda rows, key: list(rows)),
]


@pytest.mark.parametrize(("holds", "owner", "name", "bug"), _BUGS, ids=lambda part: getattr(part, "__name__", None))
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, holds: Callable[..., None], owner: Any, name: str, bug: Any
) -> None:
    @settings(
        max_examples=6000, deadline=None, suppress_health_check=SLOW, phases=[Phase.generate], database=None,
        derandomize=True,
    )  # fmt: skip
    @given(PROPERTIES[holds])
    def check(snapshot: Snapshot) -> None:
        holds(cycle.plan, snapshot)

    monkeypatch.setattr(owner, name, bug, raising=False)
    # The assertion of the property, not of hypothesis, nor a crash of the broken planner.
    with pytest.raises(AssertionError):
        check()
