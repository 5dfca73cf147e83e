"""A member of a gang, as users write them: it meets its peers by plain sockets, keeps the witness, ends when told to.

Jobs run it by itself, as text, with whatever Python the host has: it needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

MEETING_S = 60.0
SAVING_S = 1.0
STEP_S = 0.2

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
master = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
attempt = os.environ["CFAB_ATTEMPT"]
told_to_end: list[int] = []


def say(word: str) -> None:
    """One line of the witness."""
    up = Path("/proc/uptime").read_text(encoding="ascii").split()[0]
    gpus = os.environ.get("CFAB_GPUS") or "-"
    line = f"{word} {os.environ['CFAB_JOB_ID']} {attempt}.{rank} {up} {gpus}\n"
    witness = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND)
    os.write(witness, line.encode())
    os.close(witness)


def connected() -> list[socket.socket]:
    """Connections to the others: member 0 listens where the others look for it."""
    if rank == 0:
        server = socket.create_server(("", master[1]), reuse_port=False)
        server.settimeout(MEETING_S)
        return [server.accept()[0] for _ in range(size - 1)]
    give_up_at = time.monotonic() + MEETING_S
    while True:
        try:
            return [socket.create_connection(master, timeout=MEETING_S)]
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


def summed(peers: list[socket.socket]) -> int:
    """The sum of all members' numbers, by way of member 0."""
    total = 10**rank
    if rank == 0:
        total += sum(number_from(peer) for peer in peers)
    for peer in peers:
        peer.settimeout(MEETING_S)
        peer.sendall(struct.pack(">q", total))
    return total if rank == 0 else number_from(peers[0])


def number_from(peer: socket.socket) -> int:
    """One number that a peer sends."""
    peer.settimeout(MEETING_S)
    number: int = struct.unpack(">q", peer.recv(8, socket.MSG_WAITALL))[0]
    return number


def hears(peer: socket.socket) -> bool:
    """Whether a peer has said anything since the last look. One that has ended is not silent."""
    try:
        peer.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def run(peers: list[socket.socket]) -> int:
    """Lives until it is over or told to end; its exit code. Member 0 fails when a peer is silent for too long."""
    silence_s = float(os.environ.get("SILENCE_S") or "inf")
    over = Path(f"{os.environ['OVER']}.{attempt}")
    heard = {peer: time.monotonic() for peer in peers}
    for peer in peers:
        peer.setblocking(False)
    while not told_to_end and not over.exists():
        time.sleep(STEP_S)
        say("alive")
        for peer in peers:
            if rank != 0:
                # Whoever is cut off itself goes on: nothing but its keeper ends it.
                with contextlib.suppress(OSError):
                    peer.send(b".")
            elif hears(peer):
                heard[peer] = time.monotonic()
            elif time.monotonic() - heard[peer] > silence_s:
                print("a peer is silent", file=sys.stderr)
                return 1
    return 0


def save() -> None:
    """What a training does with its grace."""
    saved_at = time.monotonic() + SAVING_S
    while time.monotonic() < saved_at:
        say("alive")
        time.sleep(STEP_S)
    print("saved", flush=True)


def main() -> int:
    """From the start to the end."""
    signal.signal(signal.SIGTERM, lambda number, _frame: told_to_end.append(number))
    say("start")
    peers = connected()
    met = {"sum": summed(peers), "peers": [peer.getpeername()[0] for peer in peers]}
    shown = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CFAB_GPUS")
    print(json.dumps({**met, **{name: os.environ[name] for name in shown}}), flush=True)
    code = run(peers)
    if told_to_end:
        save()
    say("end")
    return code


if __name__ == "__main__":
    sys.exit(main())
