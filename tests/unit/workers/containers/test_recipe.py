"""What confines a container is always asked of the engine, whatever a job says."""

from __future__ import annotations

from typing import Any

import pytest

from workers.containers.recipe import container_config, parse_wanted
from workers.keeper.spec import BadSpec
from workers.runners.container import ContainerSpec


def config(**more: Any) -> dict[str, Any]:
    spec = ContainerSpec("a1", ["run", "it"], {"A": "b=c"}, 5.0, image="team/tool:1", **more)
    return container_config(parse_wanted(spec.to_wire()), "sha256:id", "/node/a1", {"cfab.node": "n"})


def test_every_container_is_confined() -> None:
    host = config()["HostConfig"]
    assert host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] and not host["Privileged"] and host["NetworkMode"] == "none"
    assert host["PidsLimit"] == 1024 and host["RestartPolicy"] == {"Name": "no"}
    assert {one["Target"] for one in host["Mounts"]} == {"/work", "/tmp"}


def test_limits_and_gpus_are_passed_on() -> None:
    host = config(memory_bytes=1 << 30, cpus_milli=1500, gpus=["GPU-1", "GPU-2"], network="bridge")["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 1 << 30 and host["NanoCpus"] == 1_500_000_000
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-1", "GPU-2"] and host["NetworkMode"] == "cfab"


def test_a_member_of_a_gang_may_have_the_hosts_network() -> None:
    made = config(network="host")
    assert made["HostConfig"]["NetworkMode"] == "host" and not made["NetworkDisabled"]
    assert made["HostConfig"]["CapDrop"] == ["ALL"]


def test_command_takes_the_place_of_the_entry_point_unless_it_is_kept() -> None:
    assert config()["Entrypoint"] == ["run", "it"] and "Cmd" not in config()
    kept = config(own_entrypoint=True)
    assert kept["Cmd"] == ["run", "it"] and "Entrypoint" not in kept


@pytest.mark.parametrize(
    ("more", "named"),
    [({"network": "container:other"}, "network"), ({"pull": "maybe"}, "pull"), ({"memory_bytes": -1}, "memory_bytes"),
     ({"argv": []}, "argv"), ({"image": "A"}, "image"), ({"image": None}, "image"),
     ({"privileged": True}, "privileged")],
)  # fmt: skip
def test_wrong_field_is_named(more: dict[str, Any], named: str) -> None:
    wire = {**ContainerSpec("a1", ["x"], {}, 5.0, image="tool").to_wire(), **more}
    with pytest.raises(BadSpec, match=named):
        parse_wanted(wire)
