"""Ending the workers' keepers at a clean stop of the stack: they outlive workers on purpose, so they must be told."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

from app.local.processes import Process, command_line, end, find, wait_gone

ANSWER_S = 5.0


def end_keepers(work: Path) -> None:
    """Ends every keeper below `work` with its jobs: by its socket, by force when it does not obey."""
    found = _keepers(work)
    for directory in {directory for directory, _ in found}:
        _tell(directory)
    left = wait_gone([process for _, process in found], ANSWER_S)
    # When a keeper is killed, the kernel and its guard end its jobs.
    end(left, signal.SIGKILL, ANSWER_S)


def _keepers(work: Path) -> list[tuple[Path, Process]]:
    """The keepers that serve a directory below `work`, by their command lines."""
    inside = os.path.realpath(work) + "/"
    programs = ("keeper/main.py", "containers/main.py")
    found = []
    for entry in Path("/proc").iterdir():
        words = command_line(int(entry.name)) if entry.name.isdigit() else ()
        if "--dir" not in words[:-1] or not any(word.endswith(programs) for word in words):
            continue
        directory = os.path.realpath(words[words.index("--dir") + 1])
        process = find(int(entry.name))
        if directory.startswith(inside) and process is not None:
            found.append((Path(directory), process))
    return found


def _tell(directory: Path) -> None:
    """Sends the order to end; silent when nobody listens."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_S)
            # By way of the open directory: a socket's path has room for about a hundred bytes only.
            client.connect(f"/proc/self/fd/{handle}/keeper.sock")
            client.sendall(json.dumps({"id": 1, "cmd": "shutdown", "kill": True}).encode() + b"\n")
            while client.recv(4096):
                pass
    except OSError:
        # Gone already, or not listening: then force follows.
        pass
    finally:
        os.close(handle)
