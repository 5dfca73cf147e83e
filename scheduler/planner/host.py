"""A node while a plan is made: what it can give now, beside reservations, and at later times."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from operator import attrgetter, itemgetter

from app.domain.resources import Gpu, alike
from scheduler.planner.ask import Ask
from scheduler.planner.snapshot import NodeView, Reserved, Running

Step = tuple[float, int]
"""From this time on, so many members fit."""

Release = tuple[float, int, int, tuple[str, ...]]
"""When it is gone, and the CPUs, memory and GPUs that it gives back."""

UNKNOWN_S = 900.0
"""What waits for the end of a job without a time limit is not expected to start before."""

_by_size = attrgetter("memory_bytes", "index", "uuid")
_first = itemgetter(0)


def end_of(run: Running, now: float) -> float:
    """When it is gone at the latest: after its grace if it was told to stop, by its limit, or nobody knows."""
    if run.stopping:
        return now + run.grace_s
    if run.limit_s is None:
        return math.inf
    return max(now, (now if run.started_at is None else run.started_at) + run.limit_s + run.grace_s)


class Host:
    """A node while a plan is made.

    `free_*` is what nothing holds now. `spare_*` is what claims may use of it: free less all that is reserved, also of
    what is not free yet; so it may be below zero. `partly` are GPUs of which slices are held: only further slices go
    there, and they come free whole with the last slice. `leaving` is what was told to stop. `simple`: all GPUs are of
    one kind, and all well that are held: then it is enough to count them.
    """

    __slots__ = (
        "_begun", "_closed", "_ends", "_steps", "at", "free_cpus", "free_gpus", "free_memory", "free_slots", "held",
        "leaving", "now", "partly", "reserved", "simple", "spare_cpus", "spare_gpus", "spare_memory", "spare_slots",
        "uniform", "view",
    )  # fmt: skip

    def __init__(self, view: NodeView, held: list[Running], now: float, at: int) -> None:
        self.view, self.held, self.now, self.at = view, held, now, at
        cpus, memory, taken, sliced = view.cpus_milli, view.memory_bytes, set[str](), dict[str, int]()
        for run in held:
            cpus -= run.shape.cpus_milli
            memory -= run.shape.memory_bytes
            taken.update(run.gpu_uuids)
            if run.shape.gpu_shared:
                for uuid in run.gpu_uuids:
                    sliced[uuid] = sliced.get(uuid, 0) + run.shape.gpu_memory_bytes
        gpus = [gpu for gpu in view.well if gpu.uuid not in taken]
        self.free_slots = self.spare_slots = view.slots - len(held)
        self.free_cpus = self.spare_cpus = cpus
        self.free_memory = self.spare_memory = memory
        self.free_gpus = self.spare_gpus = gpus
        self.partly = []
        if sliced:
            self.partly = [replace(g, held_bytes=sliced[g.uuid]) for g in view.gpus if g.uuid in sliced and g.healthy]
        self.uniform = view.uniform
        self.simple = view.uniform and len(gpus) + len(taken) == len(view.well)
        self.leaving = [run for run in held if run.stopping]
        self.reserved: list[Reserved] = []
        self._begun: list[Release] = []
        self._closed: set[str] = set()
        self._steps: dict[Ask, list[Step]] = {}
        self._ends: list[Release] | None = None

    def take(self, ask: Ask, gpu_uuids: Sequence[str], ends_at: float) -> None:
        """One allocation starts now, and is gone by then."""
        self._begun.append((ends_at, ask.cpus_milli, ask.memory_bytes, tuple(gpu_uuids)))
        self._ends = None
        self.free_slots -= 1
        self.free_cpus -= ask.cpus_milli
        self.free_memory -= ask.memory_bytes
        if ask.shape.gpu_shared:
            whole = [gpu for gpu in self.free_gpus if gpu.uuid in gpu_uuids]
            slices = [gpu for gpu in self.partly if gpu.uuid in gpu_uuids]
            rest = [gpu for gpu in self.partly if gpu.uuid not in gpu_uuids]
            more = ask.shape.gpu_memory_bytes
            self.partly = rest + [replace(gpu, held_bytes=gpu.held_bytes + more) for gpu in slices + whole]
        if gpu_uuids:
            self.free_gpus = [gpu for gpu in self.free_gpus if gpu.uuid not in gpu_uuids]
        self._spend(1, ask.cpus_milli, ask.memory_bytes, gpu_uuids)

    def reserve(self, reserved: Reserved) -> None:
        """Something is held from now on."""
        self.reserved.append(reserved)
        self._closed.update(reserved.gpu_uuids)
        self._spend(reserved.slots, reserved.cpus_milli, reserved.memory_bytes, reserved.gpu_uuids)

    def _spend(self, slots: int, cpus_milli: int, memory_bytes: int, gpu_uuids: Sequence[str]) -> None:
        self.spare_slots -= slots
        self.spare_cpus -= cpus_milli
        self.spare_memory -= memory_bytes
        if gpu_uuids:
            self.spare_gpus = [gpu for gpu in self.spare_gpus if gpu.uuid not in gpu_uuids]
        self._steps.clear()

    def spare_for(self, ask: Ask) -> int:
        """How many allocations fit beside everything that runs and is reserved."""
        gpus = ask.suiting(self.spare_gpus, self.uniform)
        if self.partly and ask.shape.gpu_shared:
            gpus += len(self._slices(ask))
        return ask.times(self.spare_slots, self.spare_cpus, self.spare_memory, gpus)

    def _slices(self, ask: Ask) -> list[Gpu]:
        """The GPUs that are shared already and have room for one slice more, the fullest first."""
        suited = [gpu for gpu in self.partly if gpu.uuid not in self._closed and gpu.suits(ask.shape)]
        return sorted(suited, key=lambda gpu: (gpu.free_bytes, gpu.index))

    def lend(self, ask: Ask) -> tuple[str, ...]:
        """The spare GPUs that one allocation gets."""
        slices = self._slices(ask) if ask.shape.gpu_shared else []
        return (slices[0].uuid,) if slices else give(self.spare_gpus, ask, 1)[0]

    def could_ever(self, ask: Ask) -> int:
        """How many allocations an empty node has room for."""
        well = ask.suiting(self.view.well, self.uniform)
        return ask.times(self.view.slots, self.view.cpus_milli, self.view.memory_bytes, well)

    def hole_for(self, ask: Ask, ends_at: float) -> tuple[int, list[Gpu]]:
        """How many allocations that are gone by `ends_at` fit now and make no reservation wait; the GPUs open to them.

        A reservation that starts later is not cut into. One that starts earlier must find what it needs beside them at
        its time. One that waits for something without a limit may do so for days, in which its room would lie idle:
        what is gone within UNKNOWN_S runs there, and delays it by no more than that.
        """
        unknown = self.now + UNKNOWN_S
        cut = [held for held in self.reserved if (unknown if held.starts_at is None else held.starts_at) < ends_at]
        closed = {uuid for held in cut for uuid in held.gpu_uuids}
        gpus = [gpu for gpu in self.free_gpus if gpu.uuid not in closed]
        slots, cpus, memory = self.free_slots, self.free_cpus, self.free_memory
        for held in cut:
            room = self._room_at(held.starts_at, cut)
            slots, cpus, memory = min(slots, room[0]), min(cpus, room[1]), min(memory, room[2])
        return ask.times(slots, cpus, memory, ask.suiting(gpus, self.uniform)), gpus

    def _room_at(self, at: float | None, cut: list[Reserved]) -> tuple[int, int, int]:
        """Slots, CPUs and memory that are left when the reservations due by then have got theirs."""
        slots, cpus, memory = self.free_slots, self.free_cpus, self.free_memory
        for end, run_cpus, run_memory, _uuids in self._releases():
            if at is not None and end <= at:
                slots, cpus, memory = slots + 1, cpus + run_cpus, memory + run_memory
        for held in cut:
            if at is None or held.starts_at is None or held.starts_at <= at:
                slots, cpus, memory = slots - held.slots, cpus - held.cpus_milli, memory - held.memory_bytes
        return slots, cpus, memory

    def steps(self, ask: Ask) -> list[Step]:
        """How many allocations fit at which time if all that runs uses its limit; both rise."""
        known = self._steps.get(ask)
        if known is None:
            known = self._steps[ask] = self._find_steps(ask)
        return known

    def _find_steps(self, ask: Ask) -> list[Step]:
        slots, cpus, memory = self.spare_slots, self.spare_cpus, self.spare_memory
        gpus = ask.suiting(self.spare_gpus, self.uniform)
        most = ask.times(slots, cpus, memory, gpus)
        found = [(self.now, most)] if most else []
        # Mostly no GPU is reserved.
        suits = None if self.simple and not self._closed else {g.uuid for g in self.view.gpus if self._open(g, ask)}
        if suits is None and ask.gpus and not (self.view.gpus and ask.suited_by(self.view.gpus[0])):
            return []
        for end, run_cpus, run_memory, uuids in self._releases():
            slots += 1
            cpus += run_cpus
            memory += run_memory
            if uuids:
                gpus += len(uuids) if suits is None else len(suits.intersection(uuids))
            if ask.gpus > gpus:
                continue
            times = ask.times(slots, cpus, memory, gpus)
            if times > most:
                most = times
                if found and found[-1][0] == end:
                    found.pop()
                found.append((end, times))
        return found

    def _releases(self) -> list[Release]:
        """What runs or starts now, soonest gone first."""
        if self._ends is None:
            out = [(end_of(r, self.now), r.shape.cpus_milli, r.shape.memory_bytes, r.gpu_uuids) for r in self.held]
            self._ends = sorted(out + self._begun, key=_first)
            if self.partly:
                # A shared GPU is free when the last of its slices is.
                last = {uuid: at for at, (_end, _cpus, _memory, uuids) in enumerate(self._ends) for uuid in uuids}
                self._ends = [
                    (end, cpus, memory, tuple(uuid for uuid in uuids if last[uuid] == at))
                    for at, (end, cpus, memory, uuids) in enumerate(self._ends)
                ]
        return self._ends

    def coming(self, ask: Ask) -> list[tuple[float, str]]:
        """The suiting GPUs that are not reserved, each with the time when it is free at the latest, soonest first."""
        ends = {uuid: end for end, _cpus, _memory, uuids in self._releases() for uuid in uuids}
        free = {gpu.uuid for gpu in self.spare_gpus}
        gpus = [gpu for gpu in self.view.gpus if self._open(gpu, ask) and (gpu.uuid in free or gpu.uuid in ends)]
        gpus.sort(key=_by_size)
        return sorted(((ends.get(gpu.uuid, self.now), gpu.uuid) for gpu in gpus), key=_first)

    def freed_by(self, run: Running, ask: Ask) -> int:
        """How many suiting GPUs that are not reserved the end of a run frees; the end of one slice frees none."""
        if not ask.gpus or not run.gpu_uuids or run.shape.gpu_shared:
            return 0
        if self.simple and not self._closed:
            return len(run.gpu_uuids) if ask.suited_by(self.view.gpus[0]) else 0
        return len(self.opened_by(run.gpu_uuids, ask, spare=False))

    def opened_by(self, gpu_uuids: Collection[str], ask: Ask, spare: bool = True) -> list[str]:
        """The suiting GPUs that are not reserved among these and, if `spare`, those to spare; the smallest first."""
        gpus = [gpu for gpu in self.view.gpus if gpu.uuid in gpu_uuids and self._open(gpu, ask)]
        if spare:
            gpus = sorted([*(gpu for gpu in self.spare_gpus if ask.suited_by(gpu)), *gpus], key=_by_size)
        return [gpu.uuid for gpu in gpus]

    def _open(self, gpu: Gpu, ask: Ask) -> bool:
        return gpu.healthy and gpu.uuid not in self._closed and ask.suited_by(gpu)


def give(gpus: Sequence[Gpu], ask: Ask, members: int) -> list[tuple[str, ...]]:
    """GPUs for so many members out of these, sorted by size: as claims choose them."""
    suited = [gpu for gpu in gpus if ask.suited_by(gpu)] if ask.gpus else []
    given: list[tuple[str, ...]] = []
    for _ in range(members):
        given.append(tuple(gpu.uuid for gpu in alike(suited, ask.gpus)))
        suited = [gpu for gpu in suited if gpu.uuid not in given[-1]]
    return given
