"""`cfab worker --gpus`: the agent's own readings, as gpustat shows them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest

from config.settings import Settings, SettingsError
from workers.gpus.inventory import collection, inventory, show


def settings(**changes: object) -> Settings:
    return Settings(**{"node_name": "n", "simulate_gpus": "2xA100-80GB,T4-16GB", **changes})  # type: ignore[arg-type]


def test_simulated_gpus_are_shown_by_gpustat_with_what_is_wrong(tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.write_text("0 process 4711 4096\n0 busy 80\n1 lost\n", encoding="ascii")
    out = StringIO()
    readings = inventory(settings(simulate_gpu_faults=str(faults)))
    show(readings, out)
    lines = out.getvalue().splitlines()
    assert "NVIDIA A100" in lines[0] and "80 %" in lines[0] and "4711(4096M)" in lines[0]
    assert f"[1] {readings[1].uuid}  OUT: GPU is lost" in lines
    assert [(one.uuid, one.memory_total) for one in collection(readings)] == [
        (one.uuid, one.memory_bytes // 2**20) for one in readings
    ]


def test_only_what_the_node_offers_is_shown() -> None:
    assert [one.index for one in inventory(settings(gpus="2"))] == [2]
    with pytest.raises(SettingsError, match="names GPUs that are not here"):
        inventory(settings(gpus="7"))


def test_a_host_without_gpus_says_so() -> None:
    out = StringIO()
    show(inventory(settings(simulate_gpus="", gpus="none")), out)
    assert out.getvalue() == "This host offers no GPU.\n"
