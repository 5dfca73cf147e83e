"""GPUs through NVML. An error belongs to the GPU that had it: the others are read as ever."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workers.gpus.reading import GpuProcess, Reading

log = logging.getLogger(__name__)


class NvmlSource:
    """Reads through `nvml`, a module as `pynvml` is. Not for several threads at once."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._open = False
        self._known: dict[str, Reading] = {}
        self._nameless: set[int] = set()

    def read(self) -> list[Reading]:
        """All GPUs by index; those seen before that no longer answer with their error."""
        try:
            if not self._open:
                self._nvml.nvmlInit()
                self._open = True
            seen = self._read_all(int(self._nvml.nvmlDeviceGetCount()))
        except self._nvml.NVMLError as exc:
            self.close()
            seen = {uuid: replace(one, error=f"NVML: {exc}") for uuid, one in self._known.items()}
        for uuid, one in self._known.items():
            if uuid not in seen:
                seen[uuid] = replace(one, error="the driver no longer lists it")
        if any(one.error for one in seen.values()):
            # A driver that has lost a GPU shows it again only to those who ask anew.
            self.close()
        for uuid, one in seen.items():
            self._known[uuid] = Reading(uuid, one.index, one.model, one.memory_bytes)
        return sorted(seen.values(), key=lambda one: one.index)

    def close(self) -> None:
        """Ends the session with the driver."""
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as exc:
                log.debug("NVML did not shut down: %s", exc)

    def _read_all(self, count: int) -> dict[str, Reading]:
        seen: dict[str, Reading] = {}
        for index in range(count):
            known = next((one for one in self._known.values() if one.index == index), None)
            try:
                one = self._read_one(index)
            except self._nvml.NVMLError as exc:
                if known is None:
                    self._warn_once(index, exc)
                    continue
                one = replace(known, error=f"NVML: {exc}")
            seen[one.uuid] = one
        return seen

    def _read_one(self, index: int) -> Reading:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._memory(handle)
        rates = self._told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        return Reading(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            index=index,
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(memory.total),
            memory_used_bytes=int(memory.used),
            utilization_percent=None if rates is None else int(rates.gpu),
            temperature_celsius=self._told(
                lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            processes=self._processes(handle),
        )

    def _memory(self, handle: Any) -> Any:
        # The second version does not count as used what the driver keeps for itself.
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        newer = self._told(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle, version=version)) if version else None
        return newer or self._nvml.nvmlDeviceGetMemoryInfo(handle)

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        """Those that compute and those that draw; None unless the driver tells of the former."""
        found = self._told(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        if found is None:
            return None
        drawing = self._told(lambda: self._nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)) or []
        by_pid = {int(one.pid): one.usedGpuMemory for one in (*drawing, *found)}
        return tuple(GpuProcess(pid, None if used is None else int(used)) for pid, used in sorted(by_pid.items()))

    def _told(self, ask: Callable[[], Any]) -> Any:
        """The answer, or None where this card or driver has none to give."""
        nvml = self._nvml
        try:
            return ask()
        except nvml.NVMLError as exc:
            lacking = {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION,
                       nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH}  # fmt: skip
            if exc.value in lacking:
                return None
            raise

    def _warn_once(self, index: int, exc: Exception) -> None:
        if index not in self._nameless:
            self._nameless.add(index)
            log.warning("GPU %d does not answer and was never seen before, so it cannot be listed: %s", index, exc)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
