"""What is done to a fabric, drawn from a seeded deck: every kind of strike comes once before any comes again."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

import psycopg2
import redis

from app.local.postgres import ServerFailed
from tests.chaos.fabric import Fabric
from tests.chaos.options import FENCE_MARGIN_S, LEASE_S, NODES
from tests.chaos.process import Process

Repair = Callable[[], None]
Strike = Callable[[], None]
AGAIN_S = 0.5
TURN_S = 0.05


class Havoc:
    """Strikes a fabric until its time is over, and repairs what it broke after a drawn while."""

    def __init__(self, fabric: Fabric, rng: random.Random, only: Collection[str] | None = None) -> None:
        """`only` names the targets that are hit; all of them if it is not given."""
        self._fabric = fabric
        self._rng = rng
        self._only = only
        self._due: list[tuple[float, int, Repair]] = []
        self._order = itertools.count()
        self._down: set[str] = set()
        self._deck: list[tuple[str, str, Strike]] = []
        self.struck: Counter[str] = Counter()

    def run(self, seconds: float, pause_s: float) -> None:
        """Strikes about every `pause_s` for `seconds`, then repairs everything."""
        began = time.monotonic()
        strike_at = began + 1.0
        while (now := time.monotonic()) < began + seconds:
            self._work(now)
            if now >= strike_at:
                strike_at = now + pause_s * self._rng.uniform(0.5, 1.5)
                self._strike()
            time.sleep(TURN_S)
        self.calm()

    def calm(self) -> None:
        """Repairs everything that is broken, at once."""
        give_up_at = time.monotonic() + 60
        while self._due and time.monotonic() < give_up_at:
            self._work(float("inf"))
            time.sleep(TURN_S)

    def keep_up(self) -> None:
        """Starts again what ended by itself, as a supervisor would."""
        for role in self._fabric.roles.values():
            role.keep_up()

    def _work(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        self.keep_up()

    def _later(self, seconds: float, repair: Repair) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), repair))

    # -- the deck --------------------------------------------------------------------------------------------

    def _cards(self) -> list[tuple[str, str, Strike]]:
        """(what is hit, what is done to it, the strike)."""
        cards: list[tuple[str, str, Strike]] = [
            ("postgres", "kill", self._kill_postgres),
            ("postgres", "immediate shutdown", self._crash_postgres),
            ("connections", "cut", self._cut_connections),
            ("broker", "kill", self._kill_broker),
            ("broker", "flush", self._flush_broker),
            ("broker", "freeze", self._freeze_broker),
        ]
        for name, role in self._fabric.roles.items():
            longest = LEASE_S * 1.5 if name in NODES else LEASE_S
            cards.append((name, "kill", partial(self._kill, name, role)))
            cards.append((name, "freeze", partial(self._freeze, name, role, longest)))
        for node in NODES:
            cards.append((node, "restart", partial(self._restart, node)))
            cards.append((f"keeper of {node}", "kill", partial(self._kill_keeper, node)))
            cards.append((f"keeper of {node}", "freeze", partial(self._freeze_keeper, node)))
        return [card for card in cards if self._only is None or card[0] in self._only]

    def _strike(self) -> None:
        """Plays the first card of the deck whose target is whole; a new deck when the old one is played."""
        if not self._deck:
            self._deck = self._cards()
            self._rng.shuffle(self._deck)
        for place, (target, deed, strike) in enumerate(self._deck):
            if target not in self._down:
                del self._deck[place]
                self._note(f"{deed} {target}")
                strike()
                self.struck[f"{deed} {target}"] += 1
                return

    def _note(self, text: str) -> None:
        with (self._fabric.logs / "strikes.log").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now():%H:%M:%S.%f} {text}\n")

    def _breaks(self, target: str, seconds: float, repair: Callable[[], bool | None]) -> None:
        """Marks a target as broken until `repair`, tried again until it does not answer False, has worked."""
        self._down.add(target)

        def work() -> None:
            if repair() is False:
                self._later(AGAIN_S, work)
            else:
                self._down.discard(target)
                self._note(f"{target} is whole again")

        self._later(seconds, work)

    # -- the roles -------------------------------------------------------------------------------------------

    def _kill(self, name: str, role: Process) -> None:
        role.kill(whole=self._rng.random() < 0.5)
        self._breaks(name, self._rng.uniform(0.1, 3.0), role.start)

    def _freeze(self, name: str, role: Process, longest_s: float) -> None:
        role.freeze()
        self._breaks(name, self._rng.uniform(0.5, longest_s), role.thaw)

    def _restart(self, name: str) -> None:
        role = self._fabric.roles[name]
        role.ask_to_end()

        def start() -> bool:
            if role.alive:
                return False
            role.start()
            return True

        self._breaks(name, 0.1, start)

    def _kill_keeper(self, node: str) -> None:
        """The keeper alone, or its guard alone: either way nothing of its jobs may live on."""
        pids = self._fabric.keeper_pids(node)
        if pids is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(pids), signal.SIGKILL)

    def _freeze_keeper(self, node: str) -> None:
        """Shorter than the fence's margin: the one pause that the fence must bear without a second line of defence."""
        pids = self._fabric.keeper_pids(node)
        if pids is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGSTOP)

        def thaw() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGCONT)

        self._breaks(f"keeper of {node}", self._rng.uniform(0.1, FENCE_MARGIN_S / 2), thaw)

    # -- the servers -----------------------------------------------------------------------------------------

    def _kill_postgres(self) -> None:
        self._fabric.postgres.kill()
        self._breaks("postgres", self._rng.uniform(0.1, 3.0), self._start_postgres)

    def _crash_postgres(self) -> None:
        pid = self._fabric.postgres.pid
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
        self._breaks("postgres", self._rng.uniform(0.1, 3.0), self._start_postgres)

    def _start_postgres(self) -> bool:
        if self._fabric.postgres.pid is not None:
            return False
        try:
            # Its children may still be about to end; then it refuses, and is asked again.
            self._fabric.postgres.start()
        except ServerFailed:
            return False
        return True

    def _cut_connections(self) -> None:
        with contextlib.suppress(psycopg2.Error):
            connection = psycopg2.connect(self._fabric.postgres.url(), connect_timeout=2)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                    )
            finally:
                connection.close()

    def _kill_broker(self) -> None:
        self._fabric.broker.kill()
        self._breaks("broker", self._rng.uniform(0.1, 3.0), self._start_broker)

    def _start_broker(self) -> bool:
        try:
            self._fabric.broker.start()
        except ServerFailed:
            return False
        return True

    def _flush_broker(self) -> None:
        with contextlib.suppress(redis.RedisError):
            with redis.Redis.from_url(self._fabric.broker.url, socket_timeout=2, socket_connect_timeout=1) as client:
                client.flushall()

    def _freeze_broker(self) -> None:
        pid = self._fabric.broker.pid
        if pid is None:
            return
        os.kill(pid, signal.SIGSTOP)
        self._breaks("broker", self._rng.uniform(0.5, 5.0), lambda: os.kill(pid, signal.SIGCONT))
