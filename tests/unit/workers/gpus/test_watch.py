"""What the watch makes of readings: which GPUs are out and why, what is told and when, and what a job uses."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.resources import MIB
from config.settings import Settings, SettingsError
from workers.gpus import watch
from workers.gpus.reading import GpuProcess, Reading
from workers.gpus.simulated import SimulatedGpus
from workers.gpus.source import open_source, select
from workers.gpus.watch import HUNG, GpuWatch


class Scripted:
    """A source that gives what the test says."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings)

    def read(self) -> list[Reading]:
        return list(self.readings)

    def close(self) -> None:
        pass

    def change(self, index: int, **changes: object) -> None:
        self.readings[index] = replace(self.readings[index], **changes)  # type: ignore[arg-type]


def reading(index: int = 0) -> Reading:
    return Reading(f"GPU-{index}", index, "A100", 80 * 10**9, "", 0, 0, 30, ())


class Scene:
    """A watch of two GPUs, the UUIDs that jobs hold, and how often it said that health changed."""

    def __init__(self, wanted: str = "") -> None:
        self.source = Scripted(reading(0), reading(1))
        self.held: set[str] = set()
        self.changes = 0
        self.watch = GpuWatch(self.source, wanted, lambda: self.held, self._changed, 5.0, 1024 * MIB)

    def _changed(self) -> None:
        self.changes += 1

    def reasons(self) -> list[str]:
        return [gpu.reason for gpu in self.watch.offered()]


def test_a_gpu_that_errs_goes_out_at_once_and_comes_back_when_it_is_well() -> None:
    scene = Scene()
    assert scene.watch.news() is None
    scene.source.change(0, error="GPU is lost")
    scene.watch.look()
    news = scene.watch.news()
    assert news is not None
    assert [(one["healthy"], one["reason"]) for one in news] == [(False, "GPU is lost"), (True, "")]
    assert not scene.watch.told(news)
    assert scene.watch.news() is None
    scene.source.change(0, error="")
    scene.watch.look()
    back = scene.watch.news()
    assert back is not None and scene.watch.told(back), "there is a GPU to give away again"
    assert scene.changes == 2


def test_a_strangers_memory_takes_an_idle_gpu_out_when_seen_twice() -> None:
    scene = Scene()
    scene.source.change(0, memory_used_bytes=5 * 2**30, processes=(GpuProcess(77, 5 * 2**30),))
    scene.watch.look()
    assert scene.reasons() == ["", ""], "what a job has just left is given back a moment later"
    scene.watch.look()
    assert scene.reasons() == ["somebody else uses about 5 GiB of its memory (process 77)", ""]
    scene.source.change(0, memory_used_bytes=0, processes=())
    scene.watch.look()
    assert scene.reasons() == ["", ""]


def test_memory_of_our_own_jobs_and_a_little_of_anyones_is_no_fault() -> None:
    scene = Scene()
    scene.held = {"GPU-0"}
    scene.source.change(0, memory_used_bytes=70 * 2**30)
    scene.source.change(1, memory_used_bytes=1024 * MIB)
    for _ in range(3):
        scene.watch.look()
    assert scene.reasons() == ["", ""]


def test_readings_are_told_when_they_changed_noticeably_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.source.change(0, utilization_percent=50)
    scene.watch.look()
    assert scene.watch.news() is None, "it is too soon"
    monkeypatch.setattr(watch, "TELL_S", 0.0)
    news = scene.watch.news()
    assert news is not None
    assert news[0]["utilization_percent"] == 50
    scene.watch.told(news)
    scene.source.change(0, utilization_percent=55, temperature_celsius=32, memory_used_bytes=2**29)
    scene.watch.look()
    assert scene.watch.news() is None, "nobody would notice"
    scene.source.change(0, utilization_percent=None)
    scene.watch.look()
    assert scene.watch.news() is not None
    assert scene.changes == 0


def test_a_driver_that_hangs_takes_its_gpus_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    news = scene.watch.news()
    assert news is not None
    assert {one["reason"] for one in news} == {HUNG}
    scene.watch.told(news)
    scene.watch.look()
    back = scene.watch.news()
    assert back is not None and scene.watch.told(back)
    assert scene.watch.news() is None


def test_a_long_wait_before_the_watch_begins_is_no_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    scene.watch.start()
    try:
        assert all(one["reason"] == "" for one in scene.watch.news() or ())
    finally:
        scene.watch.stop()


def test_the_first_readings_are_told_even_of_gpus_that_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    assert scene.watch.news() is None, "it is too soon"
    monkeypatch.setattr(watch, "TELL_S", 0.0)
    news = scene.watch.news()
    assert news is not None
    assert [(one["utilization_percent"], one["temperature_celsius"]) for one in news] == [(0, 30), (0, 30)]
    assert not scene.watch.told(news), "there is no GPU to give away that was none before"
    assert scene.watch.news() is None


def test_only_the_chosen_gpus_are_offered() -> None:
    assert [gpu.uuid for gpu in Scene("1").watch.offered()] == ["GPU-1"]
    assert [gpu.uuid for gpu in Scene("GPU-0,1").watch.offered()] == ["GPU-0", "GPU-1"]
    assert select([reading()], "") is None
    with pytest.raises(SettingsError, match="there are: 0 GPU-0"):
        select([reading()], "3")


def test_a_gpu_that_appears_later_is_offered_unless_others_were_chosen() -> None:
    for wanted, expected in (("", 3), ("0,1", 2)):
        scene = Scene(wanted)
        scene.source.readings.append(reading(2))
        scene.watch.look()
        assert len(scene.watch.offered()) == expected


def test_what_a_job_uses_is_the_mean_of_its_gpus_and_the_sum_of_its_processes() -> None:
    scene = Scene()
    scene.source.change(0, utilization_percent=80, processes=(GpuProcess(1, 100), GpuProcess(2, 20)))
    scene.source.change(1, utilization_percent=40, processes=(GpuProcess(3, 3),))
    scene.watch.look()
    assert scene.watch.use(["GPU-0", "GPU-1"]) == (60.0, 123)
    assert scene.watch.use(["GPU-0"]) == (80.0, 120)
    scene.source.change(0, processes=(GpuProcess(1, None),), utilization_percent=None)
    scene.watch.look()
    assert scene.watch.use(["GPU-0"]) == (None, None)
    assert scene.watch.use(["GPU-9"]) == (None, None)


def test_a_host_without_gpus_has_nothing_to_watch() -> None:
    nothing = GpuWatch(None, "", set, lambda: None, 5.0, 0)
    nothing.start()
    assert (nothing.offered(), nothing.news()) == ((), None)
    nothing.stop()


def test_simulated_gpus_have_steady_names_and_err_as_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "faults"
    source = SimulatedGpus("2xA100-80GB,T4-16GB", "n1", file)
    first = source.read()
    assert [(one.index, one.model, one.memory_bytes) for one in first] == [
        (0, "NVIDIA A100", 80 * 10**9), (1, "NVIDIA A100", 80 * 10**9), (2, "NVIDIA T4", 16 * 10**9),
    ]  # fmt: skip
    assert [one.uuid for one in SimulatedGpus("3xA100-80GB", "n1").read()] == [one.uuid for one in first]
    assert SimulatedGpus("T4-16GB", "n2").read()[0].uuid != first[0].uuid
    file.write_text(
        f"0 lost\n{first[1].uuid} error ECC uncorrectable\n2 memory 4096\n2 busy 80\n2 hot 90\n\nnonsense\n9 lost"
    )
    lost, ecc, used = source.read()
    assert (lost.error, ecc.error) == ("GPU is lost", "ECC uncorrectable")
    assert (used.memory_used_bytes, used.utilization_percent, used.temperature_celsius) == (4 * 2**30, 80, 90)
    file.unlink()
    assert source.read() == first


@pytest.mark.parametrize("spec", ["A100", "0xA100-80GB", "65xA100-80GB", "A100-80"])
def test_a_word_that_is_no_gpu_is_refused(spec: str) -> None:
    with pytest.raises(SettingsError, match="4xA100-80GB"):
        SimulatedGpus(spec, "n1")


def test_no_gpus_are_offered_when_none_are_wanted() -> None:
    assert open_source(Settings(gpus="none")) is None
