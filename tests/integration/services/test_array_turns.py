"""Whatever claims, ends, expansions, cancels and retries do to each other, no array has more jobs open than asked.

Ends are left uncommitted while other steps run; every step is followed by a look at what is committed.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from app.domain.errors import StateConflict
from app.domain.job import Assignment
from app.domain.policy import Ending
from app.services import arrays, report
from app.services.claim import Claimer, finish_and_claim
from app.services.stop import request_stop
from app.storage.database import Tx
from tests.factories import Fabric, Node, finished
from tests.integration.services.array_lab import (
    assert_sound,
    cancel,
    counts,
    look,
    open_jobs,
    retry,
    submit_an_array,
    tick,
    with_window,
)

STEPS = 80


class Storm:
    """One seeded run on three nodes, each of which does one thing at a time."""

    def __init__(self, fabric: Fabric, seed: int) -> None:
        self.draw = random.Random(seed)
        self.fabric = with_window(fabric, self.draw.choice([3, 8, 40]))
        self.size, self.most = self.draw.randint(5, 40), self.draw.randint(1, 6)
        self.array = submit_an_array(fabric, self.size, self.most, max_retries=self.draw.choice([0, 1]), backoff_s=0.0)
        self.nodes = [fabric.add_node() for _ in range(3)]
        self.held: dict[str, list[Assignment]] = {node.id: [] for node in self.nodes}
        self.open: dict[str, AbstractContextManager[Tx]] = {}

    def run(self) -> None:
        """Random steps, then the rest in order."""
        steps = [self.claim, self.end, self.end, self.begin_an_end, self.settle, self.tick, self.end_and_claim,
                 self.cancel, self.stop, self.retry, self.lose]  # fmt: skip
        with ExitStack() as stack:
            stack.callback(self.settle_all)
            for _ in range(STEPS):
                self.draw.choice(steps)()
                assert open_jobs(self.fabric, self.array) <= self.most
        self.drain()

    def drain(self) -> None:
        """Everything runs to its end; then nothing is lost."""
        for _ in range(6 * self.size + 20):
            self.fabric.due()
            self.fabric.sql("UPDATE job SET ready = true, not_before = NULL WHERE state = 0 AND not_before IS NOT NULL")
            for node in self.nodes:
                self.held[node.id] += self.fabric.claim(node, 2)
                for one in self.held[node.id]:
                    self.fabric.finish(one)
                self.held[node.id] = []
            tick(self.fabric)
            assert_sound(self.fabric, self.array)
            if look(self.fabric, self.array).finished_at is not None:
                break
        seen = counts(self.fabric, self.array)
        assert seen["pending"] == seen["running"] == 0
        assert sum(seen.values()) == self.size

    def free_node(self) -> Node | None:
        """A node that is in the middle of nothing."""
        free = [node for node in self.nodes if node.id not in self.open]
        return self.draw.choice(free) if free else None

    def one_of(self, node: Node | None) -> Assignment | None:
        if node is None or not self.held[node.id]:
            return None
        return self.held[node.id].pop(self.draw.randrange(len(self.held[node.id])))

    def ending(self) -> Ending:
        return Ending(exit_code=self.draw.choice([0, 0, 1]))

    def claim(self) -> None:
        if (node := self.free_node()) is not None:
            self.held[node.id] += self.fabric.claim(node, self.draw.randint(1, 4))

    def end(self) -> None:
        if (one := self.one_of(self.free_node())) is not None:
            self.fabric.finish(one, self.ending())

    def end_and_claim(self) -> None:
        node = self.free_node()
        if node is not None and (one := self.one_of(node)) is not None:
            claimer = Claimer(node.id, node.incarnation, node.runners, 60.0)
            self.held[node.id] += finish_and_claim(self.fabric.db, [finished(one, self.ending())], claimer, 3)[1]

    def begin_an_end(self) -> None:
        """An end whose transaction stays open."""
        node = self.free_node()
        if node is not None and (one := self.one_of(node)) is not None:
            transaction = self.fabric.db.transaction("finish")
            report.finish_in(transaction.__enter__(), [finished(one, self.ending())])
            self.open[node.id] = transaction

    def settle(self) -> None:
        """An open end commits, or its connection breaks: then its lease runs out."""
        if not self.open:
            return
        _name, transaction = self.open.popitem()
        if self.draw.random() < 0.7:
            transaction.__exit__(None, None, None)
            return
        broken: Any = RuntimeError("the connection broke")
        transaction.__exit__(RuntimeError, broken, None)

    def settle_all(self) -> None:
        while self.open:
            self.open.popitem()[1].__exit__(None, None, None)

    def tick(self) -> None:
        tick(self.fabric)

    def cancel(self) -> None:
        # It would wait for the ends that are open, as it should.
        if not self.open and self.draw.random() < 0.4:
            first = self.draw.randrange(self.size)
            self.refusable(lambda: cancel(self.fabric, self.array, (first, min(self.size, first + 3))))

    def stop(self) -> None:
        held = [one for node in self.nodes if node.id not in self.open for one in self.held[node.id]]
        if held:
            job_id = self.draw.choice(held).job_id
            self.refusable(lambda: request_stop(self.fabric.db, self.fabric.tenant, job_id, "ann"))

    def retry(self) -> None:
        self.refusable(lambda: retry(self.fabric, self.array))

    def lose(self) -> None:
        """A node's leases run out, those of ends that broke among them."""
        if not self.open and self.draw.random() < 0.3:
            self.fabric.expire()
            self.fabric.reap()
            for held in self.held.values():
                held.clear()

    def refusable(self, work: Any) -> None:
        try:
            work()
        except StateConflict:
            pass


@pytest.mark.parametrize("seed", range(16))
def test_no_interleaving_opens_more_jobs_than_asked(fabric: Fabric, seed: int) -> None:
    storm = Storm(fabric, seed)
    storm.run()
    assert arrays.get_array(fabric.db, fabric.tenant, storm.array).finished_at is not None
