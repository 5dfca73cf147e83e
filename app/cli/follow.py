"""A job's live log on standard output and standard error, through lost connections and server restarts."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.log_output import outputs
from app.cli.sse import Event, parse

# A server that stays away this long is given up; the job goes on without us.
GIVE_UP_S = 60.0


def pieces(
    client: Client,
    job_id: str,
    tail: str | None = None,
    stream: str | None = None,
    attempt: str | None = None,
    raw: bool = False,
    member: str | None = None,
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """The log from its beginning (or its last `tail` lines) to the job's end, each piece once and in order.

    A piece has `stream`, `attempt`, `time` (unix) and `text` or (`raw`) `base64`; what the fabric says about missing
    output has the stream `fabric`. Returns how the job ended. A broken connection is taken up after the last piece
    received. Raises Failure when the server stays away for GIVE_UP_S.
    """
    last_id: str | None = None
    heard, pause_s = time.monotonic(), 0.1
    options = {"stream": stream, "attempt": attempt, "raw": "true" if raw else None, "member": member}
    while True:
        try:
            with client.log_events(job_id, last_id, tail=None if last_id else tail, **options) as chunks:
                for event in parse(chunks):
                    heard, pause_s = time.monotonic(), 0.1
                    if event is None:
                        continue
                    if event.name == "end":
                        return _content(event)
                    last_id = event.id or last_id
                    if event.name == "log":
                        yield _content(event)
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - heard > GIVE_UP_S:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 2.0)


def _content(event: Event) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(event.data)
    return told


def follow(
    client: Client,
    job_id: str,
    as_json: bool,
    tail: str | None = None,
    stream: str | None = None,
    attempt: str | None = None,
    raw: bool = False,
    timestamps: bool = False,
    member: str | None = None,
) -> dict[str, Any]:
    """Print the log until the job ends: each stream to its own, or all as one JSON object a line.

    On a terminal nothing of it can do more than be read, unless `raw`; elsewhere it is the very bytes. Returns how the
    job ended.
    """
    told = pieces(client, job_id, tail, stream, attempt, raw or not as_json, member)
    shown = outputs(raw, timestamps)
    while True:
        try:
            piece = next(told)
        except StopIteration as end:
            for output in shown.values():
                output.close()
            ended: dict[str, Any] = end.value
            return ended
        if as_json:
            click.echo(json.dumps(piece, ensure_ascii=False))
            continue
        data = base64.b64decode(piece["base64"])
        if piece["stream"] in shown:
            shown[piece["stream"]].write(data, piece["time"])
        else:
            click.echo(data.decode("utf-8", "replace"), nl=False, err=True)
