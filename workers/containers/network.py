"""The network of containers that may reach out: a bridge of the fabric's own, on which they do not reach each other.

On the engine's own bridge any job could connect to whatever another tenant's job listens on. Standard library only.
"""

from __future__ import annotations

from workers.containers.engine import Engine, EngineAway, EngineError

NETWORK = "cfab"
INTERFACE = "cfab0"
"""The host's end of it, by a name that firewall rules can rely on."""


class NoNetwork(EngineAway):
    """The engine cannot give containers a network: a fault of the node's, never of the job's."""


def provide_network(engine: Engine) -> None:
    """Make the network unless it is there; one that an operator made by this name is taken as it is. Raises NoNetwork.

    Any number of keepers may call it at once.
    """
    try:
        if not _exists(engine):
            _make(engine)
    except EngineError as exc:
        raise NoNetwork(f"containers cannot be given the network {NETWORK!r}: {exc}") from exc


def _exists(engine: Engine) -> bool:
    try:
        engine.call("GET", f"/networks/{NETWORK}")
    except EngineError as exc:
        if exc.status == 404:
            return False
        raise
    return True


def _make(engine: Engine) -> None:
    wanted = {
        "Name": NETWORK,
        "CheckDuplicate": True,
        "Driver": "bridge",
        "Options": {
            "com.docker.network.bridge.name": INTERFACE,
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
        },
    }
    try:
        engine.call("POST", "/networks/create", body=wanted)
    except EngineError:
        # Another keeper of this engine may have been first.
        if not _exists(engine):
            raise
