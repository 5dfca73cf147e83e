"""A job's live log on standard output and standard error, through lost connections and server restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.sse import Event, parse

# A server that stays away this long is given up; the job goes on without us.
GIVE_UP_S = 60.0


def pieces(client: Client, job_id: str, tail: str | None = None, stream: str | None = None) -> Iterator[dict[str, Any]]:
    """The log from its beginning (or its last `tail` lines) to the job's end, each piece once and in order.

    A piece has `stream`, `attempt`, `time` (unix) and `text`. A broken connection is taken up after the last
    piece received. Raises Failure when the server stays away for GIVE_UP_S.
    """
    last_id: str | None = None
    heard, pause_s = time.monotonic(), 0.1
    while True:
        try:
            with client.log_events(job_id, last_id, tail=None if last_id else tail, stream=stream) as chunks:
                for event in parse(chunks):
                    heard, pause_s = time.monotonic(), 0.1
                    if event is None:
                        continue
                    if event.name == "end":
                        return
                    last_id = event.id or last_id
                    if event.name == "log":
                        yield _piece(event)
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - heard > GIVE_UP_S:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 2.0)


def _piece(event: Event) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(event.data)
    return told


def follow(client: Client, job_id: str, as_json: bool, tail: str | None = None, stream: str | None = None) -> None:
    """Print the log until the job ends: each stream to its own, or all as one JSON object a line."""
    for piece in pieces(client, job_id, tail, stream):
        if as_json:
            click.echo(json.dumps(piece, ensure_ascii=False))
        else:
            click.echo(piece["text"], nl=False, err=piece["stream"] == "stderr")
