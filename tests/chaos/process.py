"""One process of the fabric that can be killed, frozen and brought back, as one owns it: by its own pid only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Process:
    """A role in a session of its own. `wanted` says whether it should be running now."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.wanted = False
        self.exits = 0
        """How often it ended without being told to."""
        self.frozen = False
        self._argv = list(argv)
        self._env = dict(env)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    @property
    def alive(self) -> bool:
        """Whether its main process is there (it may be frozen)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it unless it is there."""
        self.wanted = True
        if self.alive:
            return
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._argv, env=self._env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
        self.frozen = False
        self._groups.add(self._process.pid)

    def keep_up(self) -> None:
        """Starts it again when it ended by itself, as a supervisor would."""
        if self.wanted and not self.alive:
            self.exits += 1
            self.start()

    def kill(self, whole: bool = False) -> None:
        """SIGKILL to its main process, or to all of its session."""
        self.wanted = False
        self._signal(signal.SIGKILL, whole)
        if self._process is not None:
            self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM; returns at once."""
        self.wanted = False
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP to its whole session."""
        self.frozen = True
        self._signal(signal.SIGSTOP, whole=True)

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._signal(signal.SIGCONT, whole=True)

    def end(self, patience_s: float = 15.0) -> None:
        """Ends it with all that it ever started in its sessions."""
        if self.alive:
            self.thaw()
            self.ask_to_end()
            give_up_at = time.monotonic() + patience_s
            while self.alive and time.monotonic() < give_up_at:
                time.sleep(0.02)
        self.wanted = False
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: int, whole: bool = False) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if whole:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)
