"""Files that come with a job, beside its work directory: there before it starts, gone when it has ended.

The job's own user may read them and no other user may; where jobs run as the keeper's user they are not to be written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

FILES = "files"


def write_files(directory: str, files: Mapping[str, str], uid: int | None) -> None:
    """Write `files` (name: text) into an attempt's folder, for user `uid` to read. Raises OSError."""
    path = f"{directory}/{FILES}"
    os.mkdir(path, 0o750)
    if uid is not None:
        # Only the group is the job's: an owner could make itself a writer. Each slot's group has one member.
        os.chown(path, -1, uid)
    for name, text in files.items():
        fd = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o440)
        with open(fd, "wb") as file:
            if uid is not None:
                os.fchown(fd, -1, uid)
            file.write(text.encode())


def remove_files(directory: str) -> None:
    """Remove an attempt's files; none is fine. Raises OSError where a job of the keeper's own user put more there."""
    path = f"{directory}/{FILES}"
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
