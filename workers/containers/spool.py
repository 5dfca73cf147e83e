"""The spool file of a container job, filled from the engine's stream instead of pipes, and once more after a break."""

from __future__ import annotations

from collections.abc import Mapping

from workers.keeper.output import Output
from workers.spool import STDERR, STDOUT, complete_length, parse_frames

HEAD_BYTES = 16 * 1024
CHANCE_BYTES = 32
"""So few bytes may be alike by chance."""


class Spool(Output):
    """The spool file, filled from the engine's stream instead of pipes."""

    __slots__ = ("begun", "said", "skip", "taken")

    def __init__(self, path: str, cap_bytes: int) -> None:
        """Nothing is printed yet, and nothing to be skipped."""
        super().__init__(path, cap_bytes)
        self.skip = {STDOUT: 0, STDERR: 0}
        self.taken = {STDOUT: 0, STDERR: 0}
        self.begun: dict[int, bytes] = {}
        self.said = 0

    def take(self, stream: int, data: bytes) -> None:
        """Append output, but not what was taken before."""
        begun = self.begun.pop(stream, b"")
        if begun and (data.startswith(begun) or begun.startswith(data)):
            self.skip[stream] = len(begun)
        skipped = min(self.skip[stream], len(data))
        self.skip[stream] -= skipped
        if skipped < len(data):
            self.taken[stream] += len(data) - skipped
            self._append(stream, data[skipped:])

    def again(self, heads: Mapping[int, bytes]) -> None:
        """All output that the engine has comes again: what was taken is not taken twice.

        `heads` are the first HEAD_BYTES of each stream that come, all of a shorter one. The engine may have dropped its
        oldest output meanwhile, more of it the shorter its lines are: where the heads begin is found in the spool.
        """
        self.begun = {}
        for stream, taken in self.taken.items():
            head = heads.get(stream, b"")
            if self.payload_bytes >= self._cap or self.truncated_bytes:
                self.skip[stream] = taken
            elif head:
                self.skip[stream] = _overlap(self._program(stream), head, taken)
            else:
                # The engine has dropped all that it had, but for a line that has not ended: those it keeps back.
                self.skip[stream] = 0
                self.begun[stream] = self._program(stream).rpartition(b"\n")[2]

    def say(self, text: str) -> None:
        """Append a line of the keeper's own to the job's standard error."""
        line = f"[cfab] {text}\n".encode(errors="replace")
        before = self.payload_bytes
        self._append(STDERR, line)
        self.said += self.payload_bytes - before

    def resume(self, said: int) -> None:
        """Go on with a spool that an earlier keeper left: a torn frame goes, and what is there is not taken again."""
        try:
            with open(self._path, "r+b") as file:
                data = file.read()
                whole = complete_length(data)
                file.truncate(whole)
        except (OSError, ValueError):
            return
        for frame in parse_frames(data[:whole]):
            self.taken[frame.stream] += len(frame.payload)
            self.payload_bytes += len(frame.payload)
        self.taken[STDERR] = max(0, self.taken[STDERR] - said)
        self.spool_bytes, self.said = whole, said

    def _program(self, stream: int) -> bytes:
        """What the spool has of the program's own output."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(self.spool_bytes)
        except OSError:
            return b""
        whole = b"".join(frame.payload for frame in parse_frames(data) if frame.stream == stream)
        # The keeper's own lines are told before the program starts.
        return whole[self.said :] if stream == STDERR else whole


def _overlap(spool: bytes, head: bytes, taken: int) -> int:
    """How many bytes of what begins with `head` are in the spool, which is `taken` long."""
    if spool.startswith(head) or head.startswith(spool):
        # Nothing was dropped, as far as anybody can tell.
        return taken
    found = spool.find(head)
    if found >= 0:
        return len(spool) - found
    sizes = range(min(len(head), len(spool)), CHANCE_BYTES, -1)
    return next((size for size in sizes if spool.endswith(head[:size])), 0)
