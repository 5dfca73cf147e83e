"""How the jobs contract shows a live log.

    id: 1:4096.2                                       where to go on (Last-Event-ID), to be read by the server alone
    event: log
    data: {"stream":"stdout","attempt":1,"time":1704110460.25,"text":"…"}

    event: end
    data: {"status":"completed","state_detail":"completed","exit_code":0,"signal":null,"attempt":1}

`fabric` as the stream says in words what is missing there. The `end` comes once; a stream that closes without it was
cut and should be asked for again. Over a WebSocket each event is one message: {"id":…,"event":…,"data":{…}}.
"""

from __future__ import annotations

import base64
from typing import Any

from app.api.jobs.translate import STATUS
from app.api.live.feed import Message
from app.api.live.log_feed import LogPiece
from app.services.views import JobView


def render(told: LogPiece | JobView) -> Message:
    """A piece of output as text, or how the job ended."""
    return _end(told) if isinstance(told, JobView) else _log(told, {"text": told.text})


def render_raw(told: LogPiece | JobView) -> Message:
    """The same with the very bytes, in base64, in place of text."""
    if isinstance(told, JobView):
        return _end(told)
    return _log(told, {"base64": base64.b64encode(told.data).decode("ascii")})


def _log(piece: LogPiece, content: dict[str, Any]) -> Message:
    told = {"stream": piece.stream, "attempt": piece.attempt, "time": round(piece.at, 6), **content}
    return Message("log", told, piece.id)


def _end(job: JobView) -> Message:
    told = {
        "status": STATUS[job.state],
        "state_detail": job.state.word,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "attempt": job.attempt,
    }
    return Message("end", told)
