"""What a container job asks for, checked, and the container that the engine is asked to make of it.

Everything that confines a job is decided here; nothing of it can be asked for or taken back by a user.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from workers.containers.network import NETWORK
from workers.containers.reference import BadReference, Reference, parse_reference
from workers.keeper.spec import BadSpec, Spec, parse_spec

WORK = "/work"
TMP = "/tmp"
FILES = "/cfab"
LABEL_NODE = "cfab.node"
LABEL_ATTEMPT = "cfab.attempt"
LABEL_JOB = "cfab.job"
VISIBLE_GPUS = "NVIDIA_VISIBLE_DEVICES"
SHM_BYTES = 1 << 30
LOG_FILE_LEAST_BYTES = 1 << 20
PULLS = ("always", "missing", "never")
NETWORKS = ("none", "bridge", "host")
"""The host's own is for members of gangs alone, who must reach each other at any port, where the operator allows it."""


class Wanted(NamedTuple):
    """A container job: what all jobs have, and its image.

    `scope` is the tenant whose own `credentials` these are, empty where they are everybody's. `refused` or `trouble`
    says why the image may not be used, or could not be checked; `notes` are for the job's log.
    """

    spec: Spec
    image: Reference
    own_entrypoint: bool
    pull: str
    network: str
    credentials: dict[str, str] | None
    scope: str = ""
    refused: str = ""
    trouble: str = ""
    notes: tuple[str, ...] = ()


def parse_wanted(raw: Any) -> Wanted:
    """Check a decoded spec. Raises BadSpec naming the first field that is wrong."""
    if not isinstance(raw, dict):
        raise BadSpec(f"spec is {raw!r}: it must be an object")
    rest = dict(raw)
    image, own = rest.pop("image", None), rest.pop("own_entrypoint", False)
    pull, network = rest.pop("pull", "always"), rest.pop("network", "none")
    credentials = rest.pop("credentials", None)
    said = {name: rest.pop(name, "") for name in ("scope", "refused", "trouble")}
    notes = rest.pop("notes", [])
    if not isinstance(image, str):
        raise BadSpec(f"image is {image!r}: it must be a container image's name")
    if pull not in PULLS:
        raise BadSpec(f"pull is {pull!r}: it must be one of {', '.join(PULLS)}")
    if network not in NETWORKS:
        raise BadSpec(f"network is {network!r}: it must be one of {', '.join(NETWORKS)}")
    if credentials is not None and not isinstance(credentials, dict):
        raise BadSpec("credentials must be an object")
    wrong = next((name for name, text in said.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise BadSpec(f"{wrong} is {said[wrong]!r}: it must be a text")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise BadSpec("notes must be a list of texts")
    try:
        reference = parse_reference(image)
    except BadReference as exc:
        raise BadSpec(str(exc)) from exc
    bare = own is True and rest.get("argv") == []
    spec = parse_spec({**rest, "argv": ["image"]} if bare else rest)
    spec = spec._replace(argv=[]) if bare else spec
    return Wanted(spec, reference, own is True, pull, network, credentials, **said, notes=tuple(notes))


def container_config(wanted: Wanted, image_id: str, directory: str, labels: dict[str, str]) -> dict[str, Any]:
    """The body of the engine's "create container": no privileges, a read-only root, hard limits."""
    spec = wanted.spec
    # Where the engine's default runtime is NVIDIA's, this gives GPUs: no job or image may choose it.
    env = {**spec.env, VISIBLE_GPUS: ",".join(spec.gpus or ()) or "void"}
    program: dict[str, Any] = {"Cmd": spec.argv or None} if wanted.own_entrypoint else {"Entrypoint": spec.argv}
    return {
        "Image": image_id,
        **program,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": labels,
        "AttachStdin": False,
        "OpenStdin": False,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": wanted.network == "none",
        "HostConfig": _host_config(wanted, directory),
    }


def _host_config(wanted: Wanted, directory: str) -> dict[str, Any]:
    spec = wanted.spec
    mounts = [_bind(f"{directory}/work", WORK), _bind(f"{directory}/tmp", TMP)]
    if spec.files:
        mounts.append(_bind(f"{directory}/files", FILES, read_only=True))
    log_bytes = max(LOG_FILE_LEAST_BYTES, spec.log_cap_bytes)
    config: dict[str, Any] = {
        "Init": True,
        "NetworkMode": NETWORK if wanted.network == "bridge" else wanted.network,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "IpcMode": "private",
        "PidsLimit": spec.pids_max,
        "ShmSize": min(SHM_BYTES, spec.memory_bytes // 2) if spec.memory_bytes else SHM_BYTES,
        "RestartPolicy": {"Name": "no"},
        "Mounts": mounts,
        # Only for finding output again after a crash: what is shown comes from the keeper's own spool.
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": str(log_bytes), "max-file": "2", "compress": "false"},
        },
    }
    if spec.memory_bytes:
        config |= {"Memory": spec.memory_bytes, "MemorySwap": spec.memory_bytes}
    if spec.cpus_milli:
        config["NanoCpus"] = spec.cpus_milli * 1_000_000
    if spec.gpus:
        config["DeviceRequests"] = [{"Driver": "", "DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]]}]
    return config


def _bind(source: str, target: str, read_only: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}
