"""The inventory against the real driver, with nvidia-smi and gpustat as witnesses."""

from __future__ import annotations

import gpustat
import pynvml

from workers.gpus.nvml import NvmlSource


def test_every_gpu_is_read_as_the_driver_has_it(smi: list[list[str]]) -> None:
    source = NvmlSource(pynvml)
    readings = source.read()
    assert [one.error for one in readings] == [""] * len(smi)
    assert [[str(one.index), one.uuid, one.model] for one in readings] == [row[:3] for row in smi]
    for one, row in zip(readings, smi, strict=True):
        assert abs(one.memory_bytes / 2**20 - float(row[3])) < 1024
        assert one.memory_used_bytes is not None and 0 <= one.memory_used_bytes <= one.memory_bytes
        assert one.temperature_celsius is None or 0 < one.temperature_celsius < 120
        assert one.utilization_percent is None or 0 <= one.utilization_percent <= 100
    source.close()


def test_gpustat_finds_the_same() -> None:
    source = NvmlSource(pynvml)
    assert [one.uuid for one in source.read()] == [str(one.uuid) for one in gpustat.new_query()]
    source.close()


def test_a_session_can_be_ended_and_begun_again() -> None:
    source = NvmlSource(pynvml)
    first = [one.uuid for one in source.read()]
    source.close()
    assert [one.uuid for one in source.read()] == first
    source.close()
