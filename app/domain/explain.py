"""Why a job waits, as a claim would see it: the same `Free.fits`, `Room.holds` and `choose` decide both.

Pure: what is known is passed in, what follows comes out as codes, numbers and sentences. Codes are a promise to
programs and never change; `docs/explain.md` says what to do about each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain import amounts
from app.domain.policy import KeySummary, TenantView, choose
from app.domain.resources import Free, Gpu, Resources
from app.domain.tenant import Quota, Usage, amount


class Code(StrEnum):
    """Why a job is not running, or that it is: from what lies in the job itself to what lies in the fabric."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BACKOFF = "backoff"
    NODE_FAULT = "node_fault"
    DEPENDENCY = "dependency"
    ARRAY = "array"
    HOLD = "hold"
    TENANT_INACTIVE = "tenant_inactive"
    QUOTA_NEVER = "quota_never"
    QUOTA = "quota"
    QUOTA_KEPT = "quota_kept"
    NO_NODES = "no_nodes"
    NO_RUNNER = "no_runner"
    NO_GPU_MODEL = "no_gpu_model"
    NO_SHARED_GPU = "no_shared_gpu"
    TOO_BIG = "too_big"
    GPU_OUT = "gpu_out"
    NODES_AWAY = "nodes_away"
    EXCLUDED = "excluded"
    GANG_TOO_BIG = "gang_too_big"
    GANG_ROOM = "gang_room"
    RESERVED = "reserved"
    KEPT = "kept"
    BUSY = "busy"
    BEHIND_OTHERS = "behind_others"
    STARTS_NOW = "starts_now"


class Fit(StrEnum):
    """What one node is to one job, from best to worst."""

    FITS = "fits"
    BUSY = "busy"
    EXCLUDED = "excluded"
    DRAINING = "draining"
    OFFLINE = "offline"
    GPU_OUT = "gpu_out"
    TOO_SMALL = "too_small"
    NOT_SHARED = "not_shared"
    NO_GPU = "no_gpu"
    NO_RUNNER = "no_runner"


EVER = frozenset({Fit.FITS, Fit.BUSY, Fit.EXCLUDED, Fit.DRAINING, Fit.OFFLINE, Fit.GPU_OUT})
"""What a node is to a job that it could run, if not now: it would when it is empty, back, and its GPUs repaired."""
_RANK = {fit: place for place, fit in enumerate(Fit)}


@dataclass(frozen=True)
class Cause:
    """One thing that holds the job up: a stable code, a sentence, and the numbers in it."""

    code: Code
    message: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What the job's key asks of a node: its share as reserved, its runner, whether executors outside may have it."""

    need: Resources
    runner: str = "process"
    external_ok: bool = False


@dataclass(frozen=True)
class NodeNow:
    """A node as claims see it; `total` is what it has when nothing runs. `excluded`: it may not have this job again."""

    id: str
    total: Free
    free: Free
    runners: frozenset[str] = frozenset({"process"})
    state: str = "ready"
    external: bool = False
    excluded: bool = False
    silent_s: float = 0.0


@dataclass(frozen=True)
class TenantNow:
    """A tenant: its quota, what it holds of it now, and what (`kept`) is kept of it for the job `kept_for`."""

    name: str
    quota: Quota = field(default_factory=Quota)
    used: Usage = field(default_factory=Usage)
    active: bool = True
    kept: Usage = field(default_factory=Usage)
    kept_for: UUID | None = None


@dataclass(frozen=True)
class Turn:
    """What a claim by one node would take: whether this job is among it, and how many jobs go first, by whose they are.

    `first` counts jobs of a better class, of the tenant itself in the class, and of other tenants in the class.
    """

    node: NodeNow
    reached: bool
    first: Mapping[str, int]


def fit_of(node: NodeNow, ask: Ask) -> Fit:
    """What a node is to a job that asks this; FITS exactly when a claim by it could take the job now."""
    if ask.runner not in node.runners or (node.external and not ask.external_ok):
        return Fit.NO_RUNNER
    if ask.need.gpus and not any(_right_model(gpu, ask.need) for gpu in node.total.gpus):
        return Fit.NO_GPU
    if ask.need.gpu_shared and not any(_right_model(gpu, ask.need) and gpu.sharing for gpu in node.total.gpus):
        return Fit.NOT_SHARED
    if not node.total.fits(ask.need):
        return Fit.GPU_OUT if _repaired(node.total).fits(ask.need) else Fit.TOO_SMALL
    if node.state != "ready":
        return Fit.DRAINING if node.state == "draining" else Fit.OFFLINE
    if node.excluded:
        return Fit.EXCLUDED
    return Fit.FITS if node.free.fits(ask.need) else Fit.BUSY


def lacks(free: Free, need: Resources) -> dict[str, tuple[int, int]]:
    """What is missing for `need`, as (there, asked) by resource; empty exactly when it fits."""
    there = {
        "slots": (free.slots, 1),
        "cpus_milli": (free.cpus_milli, need.cpus_milli),
        "memory_bytes": (free.memory_bytes, need.memory_bytes),
        "gpus": (suiting(free, need), need.gpus),
    }
    return {name: (has, asked) for name, (has, asked) in there.items() if has < asked}


def suiting(free: Free, need: Resources) -> int:
    """How many of the GPUs suit `need`."""
    return sum(gpu.suits(need) for gpu in free.gpus)


def nearest(nodes: Sequence[NodeNow], ask: Ask) -> list[tuple[NodeNow, Fit]]:
    """All nodes, the most useful to the job first: by fit, then by how little is missing, then by name."""
    judged = [(node, fit_of(node, ask)) for node in nodes]
    return sorted(judged, key=lambda pair: (_RANK[pair[1]], _distance(pair[0], pair[1], ask.need), pair[0].id))


def turn_of(
    node: NodeNow, key: KeySummary, position: int, keys: Sequence[KeySummary], tenants: Mapping[UUID, TenantView]
) -> Turn:
    """Whether a claim by `node` for all its free slots would reach the job at `position` of `key` (0: its oldest)."""
    takes = choose(keys, tenants, node.free, node.free.slots)
    by_id = {one.id: one for one in keys}
    mine = next((take.count for take in takes if take.key_id == key.id), 0)
    first: Counter[str] = Counter()
    for take in takes:
        other = by_id[take.key_id]
        if other.id == key.id:
            first["same_shape"] += min(take.count, position)
        elif other.priority_class < key.priority_class:
            first[other.priority_class.word] += take.count
        else:
            first["same_tenant" if other.tenant_id == key.tenant_id else "other_tenants"] += take.count
    return Turn(node, mine > position, {name: n for name, n in first.items() if n})


def node_causes(order: Sequence[tuple[NodeNow, Fit]], ask: Ask, turns: Sequence[Turn], position: int) -> list[Cause]:
    """What of the nodes (as `nearest` gives them) holds the job up, or that it starts now.

    `turns` are what nodes that fit would take; `position` is how many jobs of the key are before this one.
    """
    nodes = [node for node, _fit in order]
    fits = Counter(fit for _node, fit in order)
    ready = [node for node in nodes if node.state == "ready"]
    numbers: dict[str, Any] = {"nodes": len(nodes), "ready": len(ready), **{f.value: n for f, n in fits.items()}}
    if fits[Fit.FITS]:
        return [_turn_cause(turns, numbers, position)]
    if fits[Fit.BUSY]:
        return [_busy(order, ask, numbers)]
    if fits[Fit.EXCLUDED]:
        names = [node.id for node, fit in order if fit == Fit.EXCLUDED]
        message = f"{amounts.named(names)} held this job before, and an executor outside is never given a job twice."
        return [Cause(Code.EXCLUDED, message, {**numbers, "names": names[:20]})]
    away = [node for node, fit in order if fit in {Fit.DRAINING, Fit.OFFLINE}]
    if not ready:
        return [_no_nodes(nodes, numbers)]
    if away:
        message = f"No node that is big enough takes jobs: {_away(away)}. It asks {amounts.share(ask.need)}."
        return [Cause(Code.NODES_AWAY, message, {**numbers, "names": [node.id for node in away[:20]]})]
    return [_impossible(order, ask, numbers)]


def impossible(order: Sequence[tuple[NodeNow, Fit]], ask: Ask) -> Cause:
    """Why none of these nodes could ever run the job; for nodes of which none is what EVER says."""
    ready = sum(node.state == "ready" for node, _fit in order)
    return _impossible(order, ask, {"nodes": len(order), "ready": ready})


def _impossible(order: Sequence[tuple[NodeNow, Fit]], ask: Ask, numbers: dict[str, Any]) -> Cause:
    """Why no node, however idle, could run the job."""
    if any(fit == Fit.GPU_OUT for _node, fit in order):
        out = _gpus_out(order, ask)
        message = f"No node has enough GPUs that work for this job: {_told_out(out)}."
        return Cause(Code.GPU_OUT, message, {**numbers, "gpus_out": _out_numbers(out)})
    small = [node for node, fit in order if fit == Fit.TOO_SMALL]
    if small:
        return _too_big(small, ask.need, numbers)
    unshared = [node.id for node, fit in order if fit == Fit.NOT_SHARED]
    if unshared:
        message = (
            f"The job asks for {amounts.gpus(ask.need)}, and no live node lets jobs share its GPUs: an operator may "
            "allow it, or submit the job without gpu_shared."
        )
        return Cause(Code.NO_SHARED_GPU, message, {**numbers, "names": unshared[:20]})
    if any(fit == Fit.NO_GPU for _node, fit in order):
        return _no_gpu(order, ask.need, numbers)
    runners = sorted({name for node, _fit in order if node.state == "ready" for name in node.runners})
    message = (
        f"The job needs the runner {ask.runner!r}, and none of the {amounts.counted(numbers['ready'], 'live node')} "
        f"has it: they have {amounts.listed(runners) if runners else 'none'}."
    )
    if ask.runner in runners:
        message = "Only executors outside the fabric are live, and they take only binaries without GPUs."
    return Cause(Code.NO_RUNNER, message, {**numbers, "runner": ask.runner, "runners": runners})


def _too_big(small: Sequence[NodeNow], need: Resources, numbers: dict[str, Any]) -> Cause:
    best = min(small, key=lambda node: (_distance(node, Fit.TOO_SMALL, need), -_largest_gpu(node, need)))
    missing = lacks(best.total, need)
    what = amounts.listed([_has(name, has, asked, need, "in all") for name, (has, asked) in missing.items()])
    message = f"No node is big enough. The largest for this job, {best.id}, has {what}."
    told = {**numbers, "node": best.id, "lacks": _told(missing)}
    holder = max(small, key=lambda node: _largest_gpu(node, need))
    largest = _largest_gpu(holder, need)
    if need.gpus and largest < need.gpu_memory_bytes:
        kind = f"{need.gpu_model} GPU" if need.gpu_model else "GPU"
        shared = " that jobs may share" if need.gpu_shared else ""
        message += f" The largest {kind}{shared}, on {holder.id}, has {largest / 1e9:.6g} GB."
        told["largest_gpu_bytes"] = largest
    return Cause(Code.TOO_BIG, message, told)


def _largest_gpu(node: NodeNow, need: Resources) -> int:
    """The memory of the node's largest GPU of the model asked for, among those that jobs may share if it is to be."""
    right = (gpu for gpu in node.total.gpus if _right_model(gpu, need) and (gpu.sharing or not need.gpu_shared))
    return max((gpu.memory_bytes for gpu in right), default=0)


def _no_gpu(order: Sequence[tuple[NodeNow, Fit]], need: Resources, numbers: dict[str, Any]) -> Cause:
    models = sorted({gpu.model for node, _fit in order if node.state == "ready" for gpu in node.total.gpus})
    there = f"the models here are {amounts.listed(models[:8])}" if models else "no live node has a GPU"
    wanted = f"a GPU of model {need.gpu_model!r}" if need.gpu_model else "a GPU"
    message = f"The job asks for {wanted}, and there is none: {there}."
    return Cause(Code.NO_GPU_MODEL, message, {**numbers, "gpu_model": need.gpu_model, "models": models[:20]})


def _no_nodes(nodes: Sequence[NodeNow], numbers: dict[str, Any]) -> Cause:
    if not nodes:
        return Cause(Code.NO_NODES, "No node has ever joined: start one with `cfab worker`.", numbers)
    # One that drains is live and runs its jobs to their end.
    what = "takes jobs" if any(node.state == "draining" for node in nodes) else "is live"
    return Cause(Code.NO_NODES, f"No node {what}: {_away(nodes)}.", {**numbers, "names": [n.id for n in nodes[:20]]})


def _busy(order: Sequence[tuple[NodeNow, Fit]], ask: Ask, numbers: dict[str, Any]) -> Cause:
    best = next(node for node, fit in order if fit == Fit.BUSY)
    missing = lacks(best.free, ask.need)
    what = amounts.listed([_has(name, has, asked, ask.need, "free") for name, (has, asked) in missing.items()])
    away = [node for node, fit in order if fit in {Fit.DRAINING, Fit.OFFLINE}]
    out = _gpus_out(order, ask)
    besides = [text for text in (_away(away), _told_out(out)) if text]
    also = f" Besides, {'; '.join(besides)}." if besides else ""
    numbers = {**numbers, **({"gpus_out": _out_numbers(out)} if out else {})}
    some = amounts.counted(numbers[Fit.BUSY], "node")
    verb = "is" if numbers[Fit.BUSY] == 1 else "are"
    message = f"{some} big enough {verb} busy. The nearest, {best.id}, has {what}.{also}"
    return Cause(Code.BUSY, message, {**numbers, "node": best.id, "lacks": _told(missing)})


def _turn_cause(turns: Sequence[Turn], numbers: dict[str, Any], position: int) -> Cause:
    reached = next((turn for turn in turns if turn.reached), None)
    if reached is not None:
        node = reached.node
        message = f"Node {node.id} has room, and the job is among what it takes next: it should start any moment."
        if node.external:
            message = f"Executor {node.id} gets the job when it asks for one the next time."
        elif node.silent_s > 15:
            message += f" (The node was last heard {amounts.seconds(node.silent_s)} ago.)"
        return Cause(Code.STARTS_NOW, message, {**numbers, "node": node.id, "silent_s": round(node.silent_s, 1)})
    first = turns[0].first if turns else {}
    total = sum(first.values())
    told = {"first": dict(first), "same_shape_ahead": position}
    where = f"Node {turns[0].node.id} has" if turns else "Some node has"
    before = f"{amounts.counted(total, 'job')} that {'goes' if total == 1 else 'go'} first will fill it"
    message = f"{where} room, but {before}: {_first(first)}."
    return Cause(Code.BEHIND_OTHERS, message, {**numbers, **told, **({"node": turns[0].node.id} if turns else {})})


_WHOSE = {
    "same_shape": "submitted earlier with the same shape",
    "same_tenant": "of this tenant with a greater priority or earlier",
    "other_tenants": "of tenants that use less of their fair share",
}


def _first(first: Mapping[str, int]) -> str:
    return amounts.listed([f"{n} {_WHOSE.get(name, name)}" for name, n in first.items()] or ["none"])


def _amount(name: str, value: int) -> str:
    return amounts.counted(value, "slot") if name == "slots" else amount(name, value)


def _has(name: str, has: int, asked: int, need: Resources, how: str) -> str:
    if name == "gpus":
        return f"{amounts.counted(has, 'suitable GPU')} {how} (asks {amounts.gpus(need)})"
    return f"{_amount(name, has)} {how} (asks {_amount(name, asked).partition(' of ')[0]})"


def _told(missing: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {name: {"has": has, "asks": asked} for name, (has, asked) in missing.items()}


def _away(nodes: Sequence[NodeNow]) -> str:
    """Which nodes drain and which are offline."""
    parts = []
    for state in ("draining", "offline"):
        names = [node.id for node in nodes if (node.state == "draining") == (state == "draining")]
        if names:
            parts.append(f"{amounts.named(names)} {'is' if len(names) == 1 else 'are'} {state}")
    return amounts.listed(parts)


def _right_model(gpu: Gpu, need: Resources) -> bool:
    return need.gpu_model.lower() in gpu.model.lower()


def _repaired(free: Free) -> Free:
    """The same, as if no GPU were out."""
    return replace(free, gpus=tuple(replace(gpu, healthy=True) for gpu in free.gpus))


def _gpus_out(order: Sequence[tuple[NodeNow, Fit]], ask: Ask) -> list[tuple[NodeNow, Gpu]]:
    """GPUs that would suit the job and are out, on nodes that could run it otherwise."""
    if not ask.need.gpus:
        return []
    return [
        (node, gpu)
        for node, fit in order
        if fit in {Fit.GPU_OUT, Fit.BUSY}
        for gpu in node.total.gpus
        if not gpu.healthy and replace(gpu, healthy=True).suits(ask.need)
    ]


def _told_out(out: Sequence[tuple[NodeNow, Gpu]]) -> str:
    told = [f"GPU {gpu.index} of {node.id} is out: {gpu.reason or 'no reason given'}" for node, gpu in out[:3]]
    more = len(out) - len(told)
    return "; ".join(told) + (f"; and {more} more {'is' if more == 1 else 'are'} out" if more > 0 else "")


def _out_numbers(out: Sequence[tuple[NodeNow, Gpu]]) -> list[dict[str, str]]:
    return [{"node": node.id, "uuid": gpu.uuid, "reason": gpu.reason} for node, gpu in out[:20]]


def _distance(node: NodeNow, fit: Fit, need: Resources) -> float:
    """How far a node is from having what is missing, as a sum of shares of the ask; for nodes that fit, how full."""
    if fit == Fit.FITS:
        return -float(node.free.cpus_milli)
    missing = lacks(node.free if fit == Fit.BUSY else node.total, need)
    return sum((asked - has) / asked for has, asked in missing.values())
