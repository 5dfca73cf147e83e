"""GPUs through NVML: a stand-in for the library shows that an error stays with the GPU that had it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from workers.gpus.nvml import NvmlSource
from workers.gpus.reading import GpuProcess


@dataclass
class Card:
    """What the stand-in knows of one GPU; `fails` maps a function's name to the error that it raises."""

    uuid: str
    used: int = 0
    util: int = 0
    temperature: int = 30
    processes: list[Any] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)


class Nvml:
    """The functions of `pynvml` that are used, with its real errors."""

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.open = 0
        self.inits = 0
        self.init_fails: int | None = None

    def __getattr__(self, name: str) -> Any:
        """Constants and errors are the library's own."""
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if self.init_fails:
            raise pynvml.NVMLError(self.init_fails)
        self.open, self.inits = self.open + 1, self.inits + 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def _card(self, card: Card, name: str) -> Card:
        if name in card.fails:
            raise pynvml.NVMLError(card.fails[name])
        return card

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self._card(self.cards[index], "handle")

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return self._card(card, "uuid").uuid

    def nvmlDeviceGetName(self, card: Card) -> bytes:
        return b"NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: Any = None) -> Any:
        if version and "memory_v2" in card.fails:
            raise pynvml.NVMLError(card.fails["memory_v2"])
        self._card(card, "memory")
        return SimpleNamespace(total=80 * 10**9, used=card.used if version else card.used + 500 * 2**20)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        return SimpleNamespace(gpu=self._card(card, "util").util, memory=0)

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._card(card, "temperature").temperature

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return self._card(card, "processes").processes

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=1, usedGpuMemory=5)]


def test_a_gpu_is_read_with_all_that_the_driver_tells() -> None:
    process = SimpleNamespace(pid=7, usedGpuMemory=2**30)
    (one,) = NvmlSource(Nvml(Card("GPU-a", used=2**30, util=40, temperature=55, processes=[process]))).read()
    assert (one.uuid, one.index, one.model, one.memory_bytes, one.error) == ("GPU-a", 0, "NVIDIA H200", 80 * 10**9, "")
    assert (one.memory_used_bytes, one.utilization_percent, one.temperature_celsius) == (2**30, 40, 55)
    assert one.processes == (GpuProcess(1, 5), GpuProcess(7, 2**30))


def test_what_a_card_does_not_tell_is_none_and_no_error() -> None:
    lacking = pynvml.NVML_ERROR_NOT_SUPPORTED
    silent = {"util": lacking, "temperature": lacking, "processes": lacking, "memory_v2": lacking}
    (one,) = NvmlSource(Nvml(Card("GPU-a", fails=silent))).read()
    assert (one.utilization_percent, one.temperature_celsius, one.processes, one.error) == (None, None, None, "")
    assert one.memory_used_bytes == 500 * 2**20


def test_memory_of_a_process_may_be_unknown() -> None:
    hidden = SimpleNamespace(pid=7, usedGpuMemory=None)
    (one,) = NvmlSource(Nvml(Card("GPU-a", processes=[hidden]))).read()
    assert GpuProcess(7, None) in (one.processes or ())


@pytest.mark.parametrize("where", ["handle", "uuid", "memory", "util", "processes"])
def test_a_lost_gpu_is_named_and_the_others_are_read(where: str) -> None:
    nvml = Nvml(Card("GPU-a"), Card("GPU-b"))
    source = NvmlSource(nvml)
    assert [one.error for one in source.read()] == ["", ""]
    nvml.cards[0].fails = {where: pynvml.NVML_ERROR_GPU_IS_LOST}
    lost, well = source.read()
    assert (lost.uuid, "lost" in lost.error.lower(), lost.memory_used_bytes) == ("GPU-a", True, None)
    assert (well.uuid, well.error) == ("GPU-b", "")
    nvml.cards[0].fails = {}
    assert [one.error for one in source.read()] == ["", ""]
    assert nvml.inits == 2, "a driver that lost a GPU is asked anew"
    source.close()
    source.close()
    assert nvml.open == 0


def test_a_gpu_off_the_bus_is_kept_with_its_reason_though_indices_move() -> None:
    nvml = Nvml(Card("GPU-a"), Card("GPU-b"))
    source = NvmlSource(nvml)
    source.read()
    gone = nvml.cards.pop(0)
    assert {one.uuid: one.error for one in source.read()} == {"GPU-a": "the driver no longer lists it", "GPU-b": ""}
    nvml.cards.insert(0, gone)
    assert [(one.uuid, one.error) for one in source.read()] == [("GPU-a", ""), ("GPU-b", "")]


def test_a_driver_that_is_gone_takes_all_gpus_out_until_it_is_back() -> None:
    nvml = Nvml(Card("GPU-a"))
    source = NvmlSource(nvml)
    source.read()
    source.close()
    nvml.init_fails = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert [one.error.startswith("NVML: ") for one in source.read()] == [True]
    nvml.init_fails = None
    assert [one.error for one in source.read()] == [""]


def test_a_gpu_that_never_answered_has_no_name_and_is_left_out() -> None:
    nvml = Nvml(Card("GPU-a", fails={"handle": pynvml.NVML_ERROR_GPU_IS_LOST}), Card("GPU-b"))
    assert [one.uuid for one in NvmlSource(nvml).read()] == ["GPU-b"]
