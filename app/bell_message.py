"""A bell on the wire: what Celery itself would send, in its message protocol 2 and Kombu's envelope for Redis.

Written here since one goes out after every submit: Celery's producer takes 0.7 ms of the process for it, this 0.1 ms.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from uuid import uuid4

_NO_ARGUMENTS = base64.b64encode(
    json.dumps([[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
).decode()


def encode(name: str, queue: str, life_s: int) -> str:
    """Task `name` without arguments for `queue`, to be put at the left end of the list of that name.

    A worker that takes it more than `life_s` seconds later drops it.
    """
    task_id = str(uuid4())
    expires = datetime.now(UTC) + timedelta(seconds=life_s)
    return json.dumps(
        {
            "body": _NO_ARGUMENTS,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py", "task": name, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
                "group_index": None, "shadow": None, "eta": None, "expires": expires.isoformat(), "retries": 0,
                "timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": _origin(),
                "ignore_result": True, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
            },
            "properties": {
                "correlation_id": task_id, "reply_to": "", "delivery_mode": 2, "expiration": str(life_s * 1000),
                "delivery_info": {"exchange": "", "routing_key": queue}, "priority": 0, "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
    )  # fmt: skip


def _origin() -> str:
    return f"gen{os.getpid()}@{socket.gethostname()}"
