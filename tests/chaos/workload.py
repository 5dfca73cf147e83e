"""The jobs of a run: a small shell program that writes down when it lives, drawn in many variants from the seed.

It needs no interpreter beyond /bin/sh, which jobs of any user can reach wherever the virtual environment lies.
"""

from __future__ import annotations

import hashlib
import random
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TICK_S = 0.2
VARIANTS = 6
FOR_EVER = 1_000_000
GANGS = 0.15
"""The part of jobs that have two or three members."""

PROGRAM = r"""#!/bin/sh
# Appends `word job attempt boot-seconds gpus` to $WITNESS: at its start, every tick, and at its end.
# A member of a gang writes attempt.member.
# GPUs are those that CUDA would show; a slice of one is followed by @ and its bytes.
# $1: ticks to live, $2: how to end. The file named by $UNTIL ends it early.
say() {
    read -r up _ < /proc/uptime
    echo "$1 $CFAB_JOB_ID $CFAB_ATTEMPT${CFAB_GANG_RANK:+.$CFAB_GANG_RANK} $up" \
        "${CUDA_VISIBLE_DEVICES:--}${CFAB_GPU_SHARED:+@$CFAB_GPU_MEMORY_BYTES}" >> "$WITNESS"
}
trap 'say end; exit 0' TERM
say start
echo "attempt $CFAB_ATTEMPT begins"
i=0
while [ "$i" -lt "$1" ] && [ ! -e "${UNTIL:-/nonexistent}" ]; do
    sleep 0.2
    say alive
    i=$((i + 1))
done
say end
case $2 in
    fail) exit 7 ;;
    flaky) [ $((CFAB_ATTEMPT % 2)) -eq 0 ] || exit 3 ;;
esac
exit 0
"""


@dataclass(frozen=True)
class Planned:
    """One job that will be asked for, and the state in which it must end."""

    key: str
    kind: str
    body: dict[str, Any]

    @property
    def ends_as(self) -> str:
        """The only right end of this job."""
        return {"fail": "failed", "stopped": "cancelled"}.get(self.kind, "completed")


class ProgramServer:
    """Serves the program, in several byte-different variants, so that downloads go on all through a run."""

    def __init__(self) -> None:
        self._programs = {f"/program-{n}.sh": f"{PROGRAM}# variant {n}\n".encode() for n in range(VARIANTS)}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, name="programs", daemon=True).start()

    def program(self, number: int) -> dict[str, str]:
        """The fields of a job that name variant `number`."""
        path = f"/program-{number % VARIANTS}.sh"
        port = self._server.server_address[1]
        return {
            "binary_url": f"http://127.0.0.1:{port}{path}",
            "binary_sha256": hashlib.sha256(self._programs[path]).hexdigest(),
        }

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        programs = self._programs

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = programs[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        return Handler


def draw_jobs(rng: random.Random, count: int, witness: Path, programs: ProgramServer) -> list[Planned]:
    """`count` jobs in a mix: short and longer than a lease's renewals, failing, flaky, to be stopped; GPUs; gangs."""
    kinds = (["ok"] * 14 + ["flaky"] * 3 + ["fail"] * 2 + ["stopped"]) * (count // 20 + 1)
    rng.shuffle(kinds)
    return [_draw(rng, number, kinds[number], witness, programs) for number in range(count)]


def _draw(rng: random.Random, number: int, kind: str, witness: Path, programs: ProgramServer) -> Planned:
    ticks = rng.randint(1, 10) if rng.random() < 0.6 else rng.randint(15, 50)
    retries = {"fail": 1, "flaky": 90}.get(kind, 0)
    body = planned_body(rng.choice(("foreground", "background", "best_effort")), kind, witness)
    body["arguments"] = [str(FOR_EVER if kind == "stopped" else ticks), kind]
    body |= {"max_retries": retries, "backoff_seconds": rng.choice((0, 1)), "grace_seconds": 3}
    body |= programs.program(rng.randrange(VARIANTS)) if rng.random() < 0.5 else {"script": PROGRAM}
    if rng.random() < 0.7:
        body["resources"] = {
            "cpus": rng.choice((0.1, 0.5, 1, 2)),
            "memory_mib": rng.choice((64, 128, 512)),
            "gpus": rng.choice((0, 0, 0, 1, 2)),
        }
    if rng.random() < GANGS:
        body["gang"] = {"members": rng.choice((2, 2, 3))}
        # What two nodes can hold together, and one of them at times.
        body["resources"] = {"cpus": rng.choice((0.5, 1)), "memory_mib": 128, "gpus": rng.choice((0, 0, 0, 0, 1))}
    return Planned(f"chaos-{number}", kind, body)


def draw_gpu_jobs(rng: random.Random, count: int, witness: Path) -> list[Planned]:
    """`count` scripts that all hold GPUs, some for as long as several strikes; a third share theirs by memory."""
    return [_draw_gpu_job(rng, number, witness) for number in range(count)]


def _draw_gpu_job(rng: random.Random, number: int, witness: Path) -> Planned:
    body = planned_body(rng.choice(("foreground", "background")), "ok", witness) | {"script": PROGRAM}
    body["arguments"] = [str(rng.choice((1, 3, 10, 20))), "ok"]
    body["grace_seconds"] = 1
    body["resources"] = {"cpus": 0.1, "memory_mib": 64}
    if rng.random() < 1 / 3:
        body["resources"] |= {"gpu_shared": True, "gpu_memory_mib": rng.choice((20_000, 30_000, 40_000))}
    else:
        body["resources"]["gpus"] = rng.choice((1, 1, 1, 2))
    return Planned(f"gpus-{number}", "ok", body)


def planned_body(priority: str, kind: str, witness: Path) -> dict[str, Any]:
    """What every job of a run has in common."""
    return {"type": f"chaos-{kind}", "priority": priority, "env_variables": {"WITNESS": str(witness)}}
