"""A gang: the members of one job, which start together or not at all, and what the end of one means for all.

Every member is an attempt of its own; member 0 leads, and its attempt is the job's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from app.domain.policy import POISON_NODES, Ending, Verdict, failed_verdict, judge, node_fault_verdict
from app.domain.states import JobState, Outcome, Reason, StopCause

RUNNER_PREFIX = "gang-"
"""A node that can run members of gangs says so beside each of its runners: process and gang-process. Gangs have keys of
that name, so that nodes which know nothing of gangs, or shut their jobs off from the network, get none."""

GRAVITY = (
    Outcome.REFUSED,
    Outcome.LOST,
    Outcome.NODE_FAULT,
    Outcome.PREEMPTED,
    Outcome.DRAINED,
    Outcome.REQUEUED,
    Outcome.OUT_OF_MEMORY,
    Outcome.TIMED_OUT,
    Outcome.FAILED,
    Outcome.CANCELLED,
    Outcome.COMPLETED,
)
"""From what explains most to what explains least. When a host dies, the other members fail at once because their peer
is silent, long before the lease of the lost one runs out: whoever looked at the first report alone would charge the
user for a broken host. So all ends are awaited, and the gravest one is the gang's."""


@dataclass(frozen=True)
class GangPlace:
    """A member's place: which of how many, and the attempt of member 0, by which the gang is known."""

    size: int
    member: int
    leader_id: UUID


@dataclass(frozen=True)
class Peer:
    """A member as the others see it: the node it is on, that node's address, whether it is ready to start."""

    member: int
    node_id: str
    address: str | None
    prepared: bool


@dataclass(frozen=True)
class Gate:
    """The barrier of a gang: it is open once all are prepared, for good. `broken` says why it never will be.

    `waited_s` is how long the first that was prepared has waited; `port` is where member 0 is to be met.
    """

    peers: Sequence[Peer]
    port: int | None
    broken: str | None
    waited_s: float

    @property
    def is_open(self) -> bool:
        """Whether all may start."""
        return self.broken is None and all(peer.prepared for peer in self.peers)

    @property
    def missing(self) -> Sequence[int]:
        """The members that are not prepared."""
        return [peer.member for peer in self.peers if not peer.prepared]


def runner_of_key(runner: str, members: int) -> str:
    """The runner that a scheduling key names, which nodes must have."""
    return runner if members == 1 else RUNNER_PREFIX + runner


def environment_of(place: GangPlace, gate: Gate, gpus: int) -> dict[str, str]:
    """What a member finds in its environment: the fabric's words, and those that torchrun and PyTorch read.

    Each member sees its own GPUs alone, so it is a node of one process: LOCAL_RANK is 0, and RANK is the member. A
    program that starts `torchrun` itself gets nodes of as many processes as it has GPUs (PET_…).
    """
    peers = sorted(gate.peers, key=lambda peer: peer.member)
    master, port = peers[0].address or "", str(gate.port or 0)
    rank, size = str(place.member), str(place.size)
    return {
        "CFAB_GANG_SIZE": size,
        "CFAB_GANG_RANK": rank,
        "CFAB_GANG_ADDRESSES": ",".join(peer.address or "" for peer in peers),
        "MASTER_ADDR": master,
        "MASTER_PORT": port,
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NODE_RANK": rank,
        "GROUP_RANK": rank,
        "GROUP_WORLD_SIZE": size,
        "PET_NNODES": size,
        "PET_NODE_RANK": rank,
        "PET_NPROC_PER_NODE": str(max(1, gpus)),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": port,
        "PET_RDZV_ID": str(place.leader_id),
    }


def member_outcome(ending: Ending, cause: StopCause | None, broken: bool) -> Outcome:
    """How one member's attempt ended.

    While its job is being stopped, whatever it fails of is that stop: its peers may have got the signal before it. A
    member that was stopped because the gang is broken is cancelled.
    """
    if broken and cause is None and ending.stopped and not ending.lost:
        return Outcome.CANCELLED
    own = judge(ending, cause, 0, 0).outcome
    if cause is not None and own == Outcome.FAILED:
        own = judge(replace(ending, stopped=True), cause, 0, 0).outcome
    return own


def gravest(outcomes: Mapping[int, Outcome], ended_at: Mapping[int, datetime] | None = None) -> int:
    """The member whose end is the gang's: the gravest, of several the first (by the clocks of their nodes)."""
    when = ended_at or {}
    latest = datetime.max.replace(tzinfo=UTC)
    return min(outcomes, key=lambda member: (GRAVITY.index(outcomes[member]), when.get(member, latest), member))


def gang_verdict(
    outcomes: Mapping[int, Outcome],
    cause: StopCause | None,
    failures: int,
    max_retries: int,
    lost_nodes: int = 0,
    backoff_s: float = 1.0,
    multiplier: float = 2.0,
    uncharged: int = 0,
) -> Verdict:
    """The verdict on a gang all of whose members have ended; `lost_nodes` counts those of this attempt too.

    `uncharged` is how many attempts before it ended without being a failure of the job.

    Completed when all completed; cancelled when a cancel was asked; else that of the gravest end. A member that was
    cancelled without a cancel was stopped with its gang: where nothing graver happened (the barrier was missed), the
    job waits again, uncharged.
    """
    if cause == StopCause.CANCEL:
        return Verdict(Outcome.CANCELLED, JobState.CANCELLED)
    worst = outcomes[gravest(outcomes)]
    if worst == Outcome.COMPLETED:
        return Verdict(worst, JobState.COMPLETED)
    if worst == Outcome.REFUSED:
        return Verdict(worst, JobState.FAILED)
    if worst == Outcome.LOST:
        if lost_nodes >= POISON_NODES:
            return Verdict(worst, JobState.FAILED)
        return Verdict(worst, JobState.PENDING, Reason.LOST)
    if worst == Outcome.PREEMPTED:
        return Verdict(worst, JobState.PENDING, Reason.PREEMPTED)
    if worst == Outcome.DRAINED:
        return Verdict(worst, JobState.PENDING, Reason.DRAINED)
    if worst == Outcome.REQUEUED:
        return Verdict(worst, JobState.PENDING, Reason.REQUEUED)
    if worst in {Outcome.NODE_FAULT, Outcome.CANCELLED}:
        return node_fault_verdict(uncharged)
    return failed_verdict(worst, failures, max_retries, backoff_s, multiplier)
