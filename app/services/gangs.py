"""Gangs: who is prepared, when all may start, and how the ends of the members become the end of their job.

Every decision is made on rows that are read after the job was locked: members report from several nodes at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from app.domain.gang import Gate, Peer, gang_verdict, gravest, member_outcome
from app.domain.policy import Ending, Verdict
from app.domain.states import Outcome, StopCause
from app.storage import gangs as stored
from app.storage.database import Database, Row, Tx

if TYPE_CHECKING:
    from app.services.report import Finished

MISSING_NAMED = 8


@dataclass(frozen=True)
class Prepared:
    """A member that has all it needs, and where it is reached: its node's address and, for member 0, a port."""

    attempt_id: UUID
    token: UUID
    address: str | None
    port: int | None = None


def report_prepared(db: Database, prepared: Sequence[Prepared]) -> set[UUID]:
    """Notes members that are ready to start; those that their gang still waits for.

    Repeating it is safe. Under the job's lock, so that it and `miss_barrier` never both have their way.
    """
    with db.transaction("prepared") as tx:
        stored.lock_jobs(tx, [one.attempt_id for one in prepared])
        return stored.mark_prepared(tx, [vars(one) for one in prepared])


def gates(db: Database, leaders: Sequence[UUID]) -> dict[UUID, Gate]:
    """The barriers of gangs, by leader; one that is no longer current has none."""
    with db.transaction("gate") as tx:
        return _gates(tx, leaders)


def miss_barrier(db: Database, leaders: Sequence[UUID], barrier_s: float) -> dict[UUID, list[str]]:
    """Breaks gangs whose first prepared member has waited `barrier_s` in vain; the nodes of each that was broken.

    Once all are prepared the barrier is open for good, so no member can start while another is told that it was missed.
    """
    broken = {}
    with db.transaction("gate") as tx:
        stored.lock_jobs(tx, leaders)
        for leader, gate in _gates(tx, leaders).items():
            if gate.broken is None and gate.missing and gate.waited_s >= barrier_s:
                stored.break_gang(tx, leader, _missed(gate, barrier_s))
                broken[leader] = sorted({peer.node_id for peer in gate.peers})
    return broken


def _missed(gate: Gate, barrier_s: float) -> str:
    nodes = {peer.member: peer.node_id for peer in gate.peers}
    named = ", ".join(f"{member} ({nodes[member]})" for member in gate.missing[:MISSING_NAMED])
    more = f" and {len(gate.missing) - MISSING_NAMED} more" if len(gate.missing) > MISSING_NAMED else ""
    which = "member" if len(gate.missing) == 1 else "members"
    return f"{which} {named}{more} of {len(gate.peers)} were not ready {barrier_s:g} s after the first"


def _gates(tx: Tx, leaders: Sequence[UUID]) -> dict[UUID, Gate]:
    found = {}
    for leader, members in _by_leader(stored.members_of(tx, leaders)):
        if members[0].current:
            peers = [Peer(m.member, m.node_id, m.address or m.node_ip, m.prepared_at is not None) for m in members]
            found[leader] = Gate(peers, members[0].port, members[0].broken, members[0].waited_s)
    return found


def _by_leader(rows: Iterable[Row]) -> list[tuple[UUID, list[Row]]]:
    return [(leader, list(members)) for leader, members in groupby(rows, key=lambda row: row.leader_id)]


@dataclass
class _Gang:
    """One gang whose job is locked: its members as read, and what this transaction makes of them."""

    members: Mapping[int, Row]
    broken: str | None
    outcomes: dict[int, Outcome]
    ends: dict[int, Finished] = field(default_factory=dict)
    row: Row | None = None
    lost_nodes: set[str] = field(default_factory=set)


class Roll:
    """Which of the attempts that are reported are current, gangs included; and what their ends make of the gangs.

    Call it when the jobs are locked: then no other transaction can end a member.
    """

    def __init__(self, gangs: dict[UUID, _Gang]) -> None:
        self._gangs = gangs
        self._woken: set[str] = set()

    @classmethod
    def call(cls, tx: Tx, rows: Sequence[Row]) -> Roll:
        """Reads the gangs of these attempts, if there are any: plain jobs cost nothing."""
        leaders = {row.leader_id for row in rows if row.leader_id is not None and row.current == row.leader_id}
        if not leaders:
            return cls({})
        return cls(
            {
                leader: _Gang(
                    members={m.member: m for m in members},
                    broken=members[0].broken,
                    outcomes={m.member: Outcome(m.outcome) for m in members if m.outcome is not None},
                )
                for leader, members in _by_leader(stored.members_of(tx, sorted(leaders)))
            }
        )

    def has(self, row: Row) -> bool:
        """Whether the attempt of this row is current and has not ended."""
        if row.leader_id is None:
            return bool(row.current == row.attempt_id)
        gang = self._gangs.get(row.leader_id)
        return gang is not None and row.member not in gang.outcomes

    def end(self, tx: Tx, row: Row, end: Finished) -> tuple[Outcome, str]:
        """Ends a member: its outcome and message. The first that did not complete breaks the gang."""
        gang = self._gangs[row.leader_id]
        cause = None if row.stop_cause is None else StopCause(row.stop_cause)
        outcome = member_outcome(end.ending, cause, gang.broken is not None)
        message = end.message
        if outcome == Outcome.CANCELLED and cause is None:
            message = f"stopped with its gang: {gang.broken}"
        gang.row = row
        gang.lost_nodes |= set(row.lost_nodes)
        if outcome == Outcome.LOST and end.ending.started and Outcome.LOST not in gang.outcomes.values():
            # One node an attempt: hosts that go together (a rack, a switch) say less about the job than hosts in turn.
            stored.count_lost_node(tx, row.job_id, row.node_id)
            gang.lost_nodes.add(row.node_id)
        gang.outcomes[row.member], gang.ends[row.member] = outcome, end
        if gang.broken is None and outcome != Outcome.COMPLETED:
            gang.broken = f"member {row.member} on {row.node_id}: {message or outcome}"
            stored.break_gang(tx, row.leader_id, gang.broken)
            self._woken |= {m.node_id for m in gang.members.values() if m.member not in gang.outcomes}
        return outcome, message

    def verdicts(self) -> list[tuple[Row, Finished, Verdict]]:
        """The verdicts on gangs whose last member has ended now, with the end that decided."""
        found = []
        for gang in self._gangs.values():
            if gang.row is not None and len(gang.outcomes) == len(gang.members):
                found.append(self._verdict(gang, gang.row))
        return found

    @property
    def wake(self) -> frozenset[str]:
        """Nodes with members that are to be stopped now."""
        return frozenset(self._woken)

    def _verdict(self, gang: _Gang, row: Row) -> tuple[Row, Finished, Verdict]:
        verdict = gang_verdict(
            gang.outcomes,
            None if row.stop_cause is None else StopCause(row.stop_cause),
            row.failures,
            row.max_retries,
            len(gang.lost_nodes),
            row.backoff_s,
            row.backoff_multiplier,
            row.number - 1 - row.failures,
        )
        ended_at = {m.member: m.ended_at for m in gang.members.values() if m.ended_at is not None}
        ended_at |= {member: end.ended_at for member, end in gang.ends.items() if end.ended_at is not None}
        worst = gravest(gang.outcomes, ended_at)
        started = [m.started_at for m in gang.members.values() if m.started_at is not None]
        started += [end.started_at for end in gang.ends.values() if end.started_at is not None]
        end = _deciding_end(gang, worst)
        changes = {
            "message": self._message(gang, worst),
            "started_at": min(started, default=None),
            "ended_at": max((e.ended_at for e in gang.ends.values() if e.ended_at is not None), default=None),
        }
        return row, type(end)(**{**vars(end), **changes}), verdict

    @staticmethod
    def _message(gang: _Gang, worst: int) -> str:
        if gang.outcomes[worst] == Outcome.COMPLETED:
            return ""
        if gang.outcomes[worst] == Outcome.CANCELLED:
            return gang.broken or ""
        told = gang.ends[worst].message if worst in gang.ends else gang.members[worst].reason
        return f"member {worst} on {gang.members[worst].node_id}: {told or gang.outcomes[worst]}"


def _deciding_end(gang: _Gang, worst: int) -> Finished:
    """The end that is the gang's: as told now, or as it was stored before."""
    if worst in gang.ends:
        return gang.ends[worst]
    last = next(iter(gang.ends.values()))
    kept = gang.members[worst]
    return type(last)(kept.id, last.token, Ending(exit_code=kept.exit_code, signal=kept.signal))
