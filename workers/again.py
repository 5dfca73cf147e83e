"""Begins the worker anew, in the same process, once it can see jobs of its node that it could not see at its start."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from workers.agent.agent import Agent
from workers.runners.base import RunnerError

log = logging.getLogger(__name__)

LOOK_S = 5.0


class Again:
    """Watches what `agent` left unseen. `look` raises RunnerError while that is away; `end` ends the worker."""

    def __init__(self, agent: Agent, look: Callable[[], object], end: Callable[[], None]) -> None:
        self._agent = agent
        self._look = look
        self._end = end
        self._due = False

    def start(self) -> None:
        """Begins to watch."""
        threading.Thread(target=self._watch, name="again", daemon=True).start()

    def begin_if_due(self) -> None:
        """Replaces this process by its own program, when the worker was ended for that; does not return then."""
        if self._due:
            logging.shutdown()
            # A start takes up all that runs on a node, by a way that is well trodden.
            os.execv(sys.executable, sys.orig_argv)

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_S):
            if not self._agent.unseen:
                continue
            try:
                self._look()
            except RunnerError as exc:
                log.debug("still out of sight: %s", exc)
                continue
            log.warning("what ran unseen on this node can be seen again; the worker begins anew to take it up")
            self._agent.make_way()
            self._due = True
            self._end()
            return
