"""All nodes while a plan is made, found by how many GPUs they have to spare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from scheduler.planner.ask import Ask
from scheduler.planner.host import Host
from scheduler.planner.snapshot import Reserved, Running, Snapshot


class Hosts:
    """Every node of a snapshot. Room only shrinks while a plan is made: what did not fit once will not fit later."""

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        held: dict[str, list[Running]] = {node.id: [] for node in snapshot.nodes}
        for run in snapshot.running:
            if run.node_id in held:
                held[run.node_id].append(run)
        nodes = sorted(snapshot.nodes, key=attrgetter("id"))
        self.all = [Host(node, held[node.id], now, at) for at, node in enumerate(nodes)]
        self.by_id = {host.view.id: host for host in self.all}
        most = max((len(node.gpus) for node in nodes), default=0)
        # Insertion order keeps this the same in every process; sets of numbers would too, but only by accident.
        self._by_spare: list[dict[int, None]] = [{} for _ in range(most + 1)]
        for host in self.all:
            self._by_spare[len(host.spare_gpus)][host.at] = None
        # Nodes of one make hold the same when they are empty, so one of each is asked.
        makes: dict[object, list[Host]] = {}
        for host in self.all:
            makes.setdefault(host.view.make, []).append(host)
        self.makes = [(hosts[0], len(hosts)) for hosts in makes.values()]
        self.with_reservations: dict[int, Host] = {}

    def take(self, host: Host, ask: Ask, gpu_uuids: Sequence[str], ends_at: float) -> None:
        """One allocation starts on the host now, and is gone by then."""
        before = len(host.spare_gpus)
        host.take(ask, gpu_uuids, ends_at)
        self._move(host, before)

    def reserve(self, host: Host, reserved: Reserved) -> None:
        """Something is held on the host from now on."""
        before = len(host.spare_gpus)
        host.reserve(reserved)
        self.with_reservations[host.at] = host
        self._move(host, before)

    def _move(self, host: Host, before: int) -> None:
        after = len(host.spare_gpus)
        if after != before:
            del self._by_spare[before][host.at]
            self._by_spare[after][host.at] = None

    def tightest_first(self, gpus: int) -> Iterator[Host]:
        """Hosts with at least so many spare GPUs, those with fewest first. Take and reserve only after the walk."""
        for bucket in self._by_spare[gpus:]:
            for at in bucket:
                yield self.all[at]

    def most_spare(self) -> int:
        """The most GPUs that any one host has to spare."""
        return max((count for count, bucket in enumerate(self._by_spare) if bucket), default=0)
