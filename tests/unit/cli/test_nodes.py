"""Nodes as `cfab nodes` shows them: bars, one sign per GPU, and nothing that could steer a terminal."""

from __future__ import annotations

from typing import Any

import click
import pytest
from rich.console import Console

from app.cli.nodes import LEGEND, LabelPair, Wait, listed, picture


def node(**changes: Any) -> dict[str, Any]:
    """A node as the API shows it."""
    amount = {"total": 8, "free": 4}
    return {
        "name": "host", "kind": "agent", "cluster": "default", "state": "ready", "ip": "192.0.2.1", "version": "1",
        "runners": ["process"], "labels": {"zone": "a"}, "operator_labels": {}, "registered_at": "2024-01-01T12:00:00Z",
        "last_seen_at": "2024-01-01T12:00:00Z", "silent_seconds": 2.0, "slots": amount, "cpus": amount,
        "memory_bytes": {"total": 2**34, "free": 2**33}, "gpus": [], "jobs": 1, "drain": None, "running": [], **changes,
    }  # fmt: skip


def gpu(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{index}", "index": index, "model": "A100", "memory_bytes": 80 * 10**9, "state": "free",
        "reason": "", "out_by": None, "out_since": None, "job_id": None, "job_ids": [],
        "sharing": False, "slice_bytes": None, "utilization_percent": 12,
        "temperature_celsius": 40, "memory_used_bytes": 2**30, "processes": 0, **changes,
    }  # fmt: skip


def text(renderable: Any, width: int = 200) -> str:
    console = Console(width=width, record=True, file=None, highlight=False, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_a_list_has_bars_of_what_is_free_and_signs_of_gpus() -> None:
    gpus = [gpu(0), gpu(1, state="held", job_ids=["j"]), gpu(2, state="out", reason="fan")]
    shown = text(listed([node(gpus=gpus)]))
    line = shown.splitlines()[1]
    assert "█████░░░░░ 4/8" in line
    assert "8G/16G" in line
    assert "▯▮✗ 1/3" in line
    assert "host: GPU 2 out: fan, zone=a" in shown
    order = {"reason": "driver", "by": "ops", "since": None, "deadline": "2024-01-01T13:00:00Z"}
    drained = text(listed([node(state="draining", drain=order, labels={})]))
    assert "host: drained for driver, jobs stop at 2024-01-01T13:00:00Z" in drained


def test_a_drain_is_told_with_reason_deadline_and_what_is_left() -> None:
    order = {"reason": "driver", "by": "ops", "since": "2024-01-01T12:00:00Z", "deadline": "2024-01-01T13:00:00Z"}
    shown = text(picture(node(state="draining", drain=order)))
    assert "Draining by ops since 2024-01-01T12:00:00Z: driver" in shown
    assert "1 job is left; what still runs is stopped at 2024-01-01T13:00:00Z." in shown
    assert "It is empty." in text(picture(node(state="draining", jobs=0, drain=order)))


def test_each_gpu_has_its_line() -> None:
    out = gpu(
        1, state="out", reason="fan", out_by="ops", job_ids=["j-1"], utilization_percent=None, memory_used_bytes=None
    )
    shown = text(picture(node(gpus=[gpu(0), out])))
    assert "12%" in shown and "40°C" in shown
    assert "✗ out: fan (by ops); job j-1 still has it" in shown
    assert "- of 74.5G" in shown


def test_jobs_are_listed() -> None:
    job = {"id": "j-1", "type": "train", "state_detail": "running", "tenant": "lab", "since": "2024-01-01T12:00:00Z",
           "cpus": 1.5, "memory_bytes": 2**30, "gpus": ["GPU-0"]}  # fmt: skip
    shown = text(picture(node(running=[job])))
    assert "train" in shown and "lab" in shown and "1.5" in shown


def test_ids_are_whole_on_a_narrow_terminal() -> None:
    uuid, job_id = f"GPU-{'8' * 36}", "9" * 36
    job = {"id": job_id, "type": "train", "state_detail": "running", "tenant": "lab", "since": "2024-01-01T12:00:00Z",
           "cpus": 1.5, "memory_bytes": 2**30, "gpus": [uuid]}  # fmt: skip
    shown = text(picture(node(gpus=[gpu(0, uuid=uuid, state="out", reason="fan")], running=[job])), width=80)
    assert uuid in shown and job_id in shown and "out: fan" in shown and "12%" in shown and "40°C" in shown


def test_names_cannot_steer_the_terminal() -> None:
    shown = text(picture(node(name="\x1b[2Jhost", labels={"a": "\x1b[31m"})))
    assert "\x1b" not in shown


def test_a_label_is_set_or_removed() -> None:
    assert LabelPair().convert("zone=a=b", None, None) == ("zone", "a=b")
    assert LabelPair().convert("zone=", None, None) == ("zone", "")
    assert LabelPair().convert("zone-", None, None) == ("zone", None)
    for wrong in ("zone", "=a", "-", ""):
        with pytest.raises(click.BadParameter, match="NAME=VALUE"):
            LabelPair().convert(wrong, None, None)


def test_a_deadline_may_be_now() -> None:
    assert Wait().convert("0", None, None) == 0
    assert Wait().convert("30m", None, None) == 1800


def test_a_narrow_terminal_loses_no_column_and_breaks_no_id() -> None:
    uuid, job_id = "GPU-550e8400-e29b-41d4-a716-446655440000", "550e8400-e29b-41d4-a716-446655440000"
    job = {
        "id": job_id, "state_detail": "running", "since": "2024-01-01T12:00:00Z", "type": "train", "tenant": "students",
        "cpus": 4, "memory_bytes": 2**34, "gpus": [uuid],
    }  # fmt: skip
    gpus = [gpu(n, uuid=uuid, model="NVIDIA A100-SXM4-80GB", state="held", job_ids=[job_id]) for n in range(4)]
    one = node(name="gpu-host-12.cluster.example", gpus=gpus, running=[job])
    lines = text(listed([one], 80), width=80).splitlines()
    assert lines[0].split() == ["NODE", "STATE", "SLOTS", "CPUS", "MEMORY", "GPUS", "JOBS", "SEEN"]
    assert lines[1].split()[-5:] == ["8G/16G", "▮▮▮▮", "0/4", "1", "2s"]
    shown = text(picture(one, 80), width=80)
    for whole in (f"▮ job {job_id}", uuid, "NVIDIA A100-SXM4-80GB", "12%", "40°C", "train, students"):
        assert whole in shown
    assert f"{job_id}  running" in shown
    assert shown.count("16G") == 2


def test_nothing_is_said_of_what_an_executor_outside_has() -> None:
    endless = {"total": 1_000_000, "free": 999_999}
    one = node(kind="external", slots=endless, cpus=endless, memory_bytes={"total": 9 * 10**15, "free": 9 * 10**15})
    for shown in (text(listed([one])), text(picture(one)), text(listed([one], 80), width=80)):
        assert "e+" not in shown and "999" not in shown
        assert "█" not in shown.replace(LEGEND, "")


def test_the_signs_of_gpus_and_the_bars_are_told_apart() -> None:
    gpus = [gpu(0, state="held", job_ids=["j"]), gpu(1)]
    assert text(listed([node(gpus=gpus)])).splitlines()[-1] == LEGEND == LEGEND.strip()
    assert LEGEND in text(picture(node(gpus=gpus)))
