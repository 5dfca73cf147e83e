"""What jobs leave in their folders: its removal, also where a container's users made folders that are shut to ours.

Files of a container's root are root's on this host. A keeper that is not root may remove them only from folders that
let it, so the engine, which is root, is asked to open those while their container is still there.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Mapping

from workers.containers.book import complain
from workers.containers.engine import Engine, EngineError

OPEN_S = 60.0
FOLDERS_AT_A_TIME = 4096
"""So many headers of a tar archive are 2 MiB."""


def open_folders(engine: Engine, container: str, places: Mapping[str, str]) -> None:
    """Let this user remove everything below `places`: paths on this host, each with its path in a stopped container.

    Needs no program in the container. Takes up to a minute, and raises nothing: what stays shut is told later, when it
    cannot be removed.
    """
    if os.geteuid() == 0:
        return
    give_up_at = time.monotonic() + OPEN_S
    for place, inside in places.items():
        before: list[str] = []
        # A folder that cannot be read hides others below it.
        while (shut := _shut_folders(place)) and shut != before and time.monotonic() < give_up_at:
            before = shut
            try:
                for at in range(0, len(shut), FOLDERS_AT_A_TIME):
                    engine.unpack(container, inside, _opened(place, shut[at : at + FOLDERS_AT_A_TIME]))
            except EngineError as exc:
                complain(f"folders of container {container[:12]} could not be opened: {exc}")
                break


def remove_tree(path: str) -> None:
    """Remove a folder with all below it, and complain once of what could not be removed."""
    kept: list[BaseException] = []
    shutil.rmtree(path, onerror=lambda _function, _path, error: kept.append(error[1]))
    kept = [error for error in kept if not isinstance(error, FileNotFoundError)]
    if kept:
        complain(f"{path} takes up disk: {len(kept)} files or folders could not be removed, the first: {kept[0]}")


def _shut_folders(place: str) -> list[str]:
    """The folders below `place` from which this user may not remove files, as far as it can look."""
    found, todo = [], [place]
    while todo:
        folder = todo.pop()
        try:
            if folder != place and _is_shut(folder):
                found.append(folder)
            with os.scandir(folder) as entries:
                todo.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
    return found


def _is_shut(folder: str) -> bool:
    status = os.lstat(folder)
    if status.st_uid == os.geteuid():
        # Its owner opens it without anybody's help.
        os.chmod(folder, 0o700)
        return False
    return bool(status.st_mode & stat.S_ISVTX) or not os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def _opened(place: str, folders: list[str]) -> bytes:
    """An archive of empty folders which this user may remove files from; unpacked, it changes those that are there."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for folder in folders:
            info = tarfile.TarInfo(os.path.relpath(folder, place))
            # For all: where the engine maps users, this one's number is another's there.
            info.type, info.mode = tarfile.DIRTYPE, 0o777
            info.uid, info.gid = os.geteuid(), os.getegid()
            archive.addfile(info)
    return data.getvalue()
