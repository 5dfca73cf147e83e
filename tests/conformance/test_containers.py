"""What only real containers can show: images, confinement, and that nothing is lost or left when something dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.conftest import CONTAINERS
from tests.conformance.lab import Lab, boottime, eventually
from tests.engine import TEST_IMAGE, TestEngine
from workers.runners.base import ExitRecord, StartRefused
from workers.runners.fake import Script

LONG = Script(duration_s=None, output="ready\n")


@pytest.fixture
def boxes(docker_engine: TestEngine, node_directory: Path) -> Iterator[Lab]:
    """The container runner on a real engine."""
    lab = Lab(replace(CONTAINERS, engine=docker_engine.socket), node_directory)
    yield lab
    lab.close()


@pytest.fixture
def registry(docker_engine: TestEngine) -> Iterator[TestEngine]:
    """The engine, with its registry running."""
    docker_engine.start_registry()
    yield docker_engine
    docker_engine.stop_registry()


def shell(lab: Lab, program: str, **more: object) -> tuple[ExitRecord, str]:
    """Run a shell program and return how it ended and what it printed to standard output."""
    record = lab.run_program("a1", ["/bin/sh", "-c", program], **more)
    return record, lab.text("a1", 1)


def containers(engine: TestEngine, lab: Lab) -> list[str]:
    """The names of this lab's containers, running or not."""
    found = engine.engine.labelled(f"cfab.node={lab.keeper.hello['name']}")
    return [one["Names"][0] for one in found]


# -- confinement ---------------------------------------------------------------------------------------------


def test_container_has_no_privileges_and_can_write_only_where_it_may(boxes: Lab) -> None:
    program = """cat /proc/self/status
for d in / /etc /bin /cfab; do touch $d/x 2>/dev/null && echo wrote $d; done
for d in /work /tmp /dev/shm; do touch $d/x && echo may write $d; done; ls /sys/class/net; pwd"""
    record, text = shell(boxes, program)
    assert record.exit_code == 0
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in text
    assert "wrote" not in text
    assert all(f"may write {place}\n" in text for place in ("/work", "/tmp", "/dev/shm"))
    assert text.endswith("lo\n/\n")


def test_limits_are_enforced_and_oom_is_seen(boxes: Lab) -> None:
    record, _ = shell(boxes, "dd if=/dev/zero of=/dev/null bs=200M count=1", memory_bytes=32 << 20)
    assert record.oom and record.exit_code != 0


def test_pids_are_limited(boxes: Lab) -> None:
    record, _ = shell(boxes, "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; echo all", pids_max=20)
    assert "all" not in boxes.text("a1", 1) and record.exit_code != 0


def test_gpus_are_asked_for_by_uuid(boxes: Lab, docker_engine: TestEngine) -> None:
    gpus = ["GPU-1b2d8f2c-0000-4a52-9d1c-aaaaaaaaaaaa", "GPU-2b2d8f2c-0000-4a52-9d1c-bbbbbbbbbbbb"]
    record, text = shell(boxes, "env", gpus=gpus)
    assert record.exit_code == 0
    assert visible_gpus(text) == {",".join(gpus)}
    # The hook that gives a container its GPUs was really called.
    assert "bundle" in json.loads((docker_engine.root / "gpu-hook.json").read_text())


def visible_gpus(env: str) -> set[str]:
    return {line.partition("=")[2] for line in env.splitlines() if line.startswith("NVIDIA_VISIBLE_DEVICES=")}


def test_neither_a_job_nor_its_image_chooses_gpus(boxes: Lab, docker_engine: TestEngine) -> None:
    docker_engine.docker("import", "--change", "ENV NVIDIA_VISIBLE_DEVICES=all", "-", "cfab-greedy:1",
                         stdin=docker_engine.archive())  # fmt: skip
    greedy = {"env": {"PATH": "/bin", "NVIDIA_VISIBLE_DEVICES": "all"}}
    gpu = "GPU-1b2d8f2c-0000-4a52-9d1c-aaaaaaaaaaaa"
    for number, more in enumerate(({}, greedy, {"image": "cfab-greedy:1"}, {"image": "cfab-greedy:1", **greedy})):
        boxes.run_program(f"a{number}", ["/bin/env"], **more)
        assert visible_gpus(boxes.text(f"a{number}", 1)) == {"void"}
        boxes.run_program(f"b{number}", ["/bin/env"], gpus=[gpu], **more)
        assert visible_gpus(boxes.text(f"b{number}", 1)) == {gpu}


def test_files_of_the_job_can_be_read_inside(boxes: Lab) -> None:
    _, text = shell(
        boxes, "cat /cfab/config.json; rm /cfab/config.json 2>/dev/null; ls /cfab", files={"config.json": "{}\n"}
    )
    assert text == "{}\nconfig.json\n"


def test_image_program_runs_with_the_job_s_arguments(boxes: Lab, docker_engine: TestEngine) -> None:
    docker_engine.docker("import", "--change", 'ENTRYPOINT ["echo","from the image:"]', "--change", 'CMD ["x"]', "-",
                         "cfab-echo:1", stdin=docker_engine.archive())  # fmt: skip
    more = {"image": "cfab-echo:1", "own_entrypoint": True}
    boxes.runner.start(boxes.program("a1", ["hello"], **more))
    boxes.ended("a1")
    assert boxes.text("a1", 1) == "from the image: hello\n"
    boxes.runner.start(boxes.program("a2", [], **more))
    boxes.ended("a2")
    assert boxes.text("a2", 1) == "from the image: x\n"


# -- images ----------------------------------------------------------------------------------------------------


def test_tag_is_resolved_pulled_and_recorded_by_digest(boxes: Lab, registry: TestEngine) -> None:
    digest = registry.push("team/tool:1")
    image = f"{registry.registry}/team/tool:1"
    record = boxes.run_program("a1", ["true"], image=image, pull="always")
    assert (record.exit_code, record.image_digest) == (0, digest)
    assert "pulling image" in boxes.text("a1", 2) and "pulled image in" in boxes.text("a1", 2)
    # A tag that moves is looked up again, one that has not moved is not pulled again.
    record = boxes.run_program("a2", ["true"], image=image, pull="always")
    assert record.image_digest == digest and boxes.text("a2", 2) == ""
    registry.import_image("cfab-other:1", other="x")
    moved = registry.push("team/tool:1", "cfab-other:1")
    record = boxes.run_program("a3", ["test", "-e", "/other"], image=image, pull="always")
    assert moved != digest and (record.exit_code, record.image_digest) == (0, moved)
    # A digest stays what it is, and needs no registry once it is here.
    registry.stop_registry()
    pinned = f"{registry.registry}/team/tool@{digest}"
    record = boxes.run_program("a4", ["test", "-e", "/other"], image=pinned, pull="always")
    assert (record.exit_code, record.image_digest) == (1, digest)


@pytest.mark.parametrize("name", ["team/tool:absent", "absent/tool:1", f"team/tool@sha256:{'0' * 64}"])
def test_image_that_does_not_exist_is_refused_with_the_reason(boxes: Lab, registry: TestEngine, name: str) -> None:
    registry.push("team/tool:1")
    record = boxes.run_program("a1", ["true"], image=f"{registry.registry}/{name}", pull="always")
    assert record.node_fault is None and record.spawn_error is not None
    assert name.partition("@")[0].partition(":")[0] in record.spawn_error
    assert "unknown" in record.spawn_error or "not found" in record.spawn_error
    assert record.spawn_error in boxes.text("a1", 2)
    assert boxes.run_program("a2", ["true"], image="nowhere:1", pull="never").spawn_error is not None


@pytest.mark.parametrize("path", ["geofabrik/x", "acme/tls-demo", "openai/ollama", "timeout/eof"])
@pytest.mark.parametrize("version", [":tls", f"@sha256:{'0' * 64}"])
def test_image_that_does_not_exist_is_refused_whatever_its_name(
    boxes: Lab, registry: TestEngine, path: str, version: str
) -> None:
    record = boxes.run_program("a1", ["true"], image=f"{registry.registry}/{path}{version}", pull="always")
    assert (record.node_fault, record.spawn_error is None) == (None, False)


def test_registry_that_is_away_is_the_node_s_fault(boxes: Lab, docker_engine: TestEngine) -> None:
    for attempt, name in (("a1", "team/tool:1"), ("a2", f"team/tool@sha256:{'1' * 64}")):
        record = boxes.run_program(attempt, ["true"], image=f"{docker_engine.registry}/{name}", pull="always")
        assert record.spawn_error is None and record.node_fault is not None
        assert "connection refused" in record.node_fault


@pytest.mark.parametrize("name", ["UPPER/case", "x:y:z", "name@sha256:12", "-x", "a b", "http://x/y"])
def test_what_is_no_image_name_is_refused(boxes: Lab, name: str) -> None:
    with pytest.raises(StartRefused, match="image") as refused:
        boxes.runner.start(boxes.program("a1", ["true"], image=name))
    assert refused.value.code == "invalid"


def test_images_beyond_the_cap_are_removed_but_not_the_operator_s(
    docker_engine: TestEngine, registry: TestEngine, node_directory: Path
) -> None:
    lab = Lab(replace(CONTAINERS, engine=docker_engine.socket), node_directory, max_image_bytes=1)
    try:
        for number in (1, 2):
            registry.import_image(f"cfab-n{number}:1", number=str(number))
            registry.push(f"n/tool{number}:1", f"cfab-n{number}:1")
            image = f"{registry.registry}/n/tool{number}:1"
            assert lab.run_program(f"a{number}", ["true"], image=image, pull="always").exit_code == 0
        eventually(lambda: "n/tool" not in registry.docker("images", "--digests"), "room")
        assert TEST_IMAGE.partition(":")[0] in registry.docker("images")
    finally:
        lab.close()


# -- deaths ----------------------------------------------------------------------------------------------------


def test_killed_keeper_comes_back_and_goes_on_with_its_containers(boxes: Lab, docker_engine: TestEngine) -> None:
    program = "echo one; while [ ! -e /work/go ]; do sleep 0.05; done; echo two; echo three >&2; exit 7"
    boxes.runner.start(boxes.program("a1", ["/bin/sh", "-c", program], attempt=3))
    boxes.printed("a1")
    pid = boxes.keeper.hello["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: boxes.keeper.hello["pid"] != pid, "new keeper")
    (boxes.directory / "attempts" / "a1" / "work" / "go").touch()
    record = boxes.ended("a1")
    assert (record.exit_code, record.attempt, record.keeper_lost) == (7, 3, False)
    assert (boxes.text("a1", 1), boxes.text("a1", 2)) == ("one\ntwo\n", "three\n")
    assert containers(docker_engine, boxes) == []


def test_deadline_holds_without_an_agent_and_after_a_keeper_s_death(boxes: Lab, docker_engine: TestEngine) -> None:
    boxes.runner.start(boxes.spec("a1", LONG, deadline=boottime() + 60))
    boxes.runner.start(boxes.spec("a2", LONG, deadline=boottime() + 1.5, slot=1))
    boxes.printed("a1")
    boxes.printed("a2")
    pid = boxes.keeper.hello["pid"]
    boxes.runner.close()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(containers(docker_engine, boxes)) == 1, "end of a2 without an agent")
    boxes.open()
    held = {one.attempt_id: one for one in boxes.runner.attach()}
    assert held["a1"].running and held["a1"].record is None
    assert held["a2"].record is not None and held["a2"].record.lease_lost


def test_end_while_nobody_looked_is_found(boxes: Lab) -> None:
    boxes.runner.start(boxes.program("a1", ["/bin/sh", "-c", "echo ready; sleep 0.5; echo end; exit 9"]))
    boxes.printed("a1")
    hello = dict(boxes.keeper.hello)
    os.kill(hello["guard_pid"], signal.SIGKILL)
    boxes.runner.close()
    os.kill(hello["pid"], signal.SIGKILL)
    eventually(lambda: not is_running(hello["pid"]), "end of the keeper")
    boxes.open()
    record = boxes.ended("a1")
    assert record.exit_code == 9 and boxes.text("a1") == "ready\nend\n"


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_container_that_belongs_to_no_attempt_is_removed(boxes: Lab, docker_engine: TestEngine) -> None:
    label = f"cfab.node={boxes.keeper.hello['name']}"
    docker_engine.docker("run", "-d", "--label", label, "--label", "cfab.attempt=stray", TEST_IMAGE, "sleep", "1000")
    docker_engine.docker("run", "-d", "--name", "other", TEST_IMAGE, "sleep", "1000")
    os.kill(boxes.keeper.hello["pid"], signal.SIGKILL)
    eventually(lambda: containers(docker_engine, boxes) == [], "removal of the stray")
    assert "other" in docker_engine.docker("ps", "--format", "{{.Names}}")
    docker_engine.docker("rm", "-f", "other")


def test_removed_container_is_a_loss_of_the_node_s(boxes: Lab, docker_engine: TestEngine) -> None:
    boxes.runner.start(boxes.spec("a1", LONG))
    boxes.printed("a1")
    docker_engine.docker("rm", "-f", *[name.lstrip("/") for name in containers(docker_engine, boxes)])
    record = boxes.ended("a1")
    assert record.keeper_lost or record.signal == 9


def test_engine_that_stops_loses_its_jobs_to_another_try(boxes: Lab, docker_engine: TestEngine) -> None:
    boxes.runner.start(boxes.spec("a1", LONG))
    boxes.printed("a1")
    docker_engine.stop_engine()
    docker_engine.start_engine()
    record = boxes.ended("a1")
    assert record.keeper_lost and (record.exit_code, record.signal) == (None, None)
    assert boxes.run("a2", Script(exit_code=3)).exit_code == 3


def test_stop_while_the_image_is_on_its_way_ends_at_once(boxes: Lab, docker_engine: TestEngine) -> None:
    boxes.runner.start(boxes.program("a1", ["true"], image="10.255.255.1:9/never/there:1", pull="always"))
    boxes.runner.stop("a1", 60.0, "cancel")
    record = boxes.ended("a1")
    assert record.stop_cause == "cancel" and record.started_boottime is None
    assert containers(docker_engine, boxes) == []


def test_keeper_that_is_told_to_end_takes_its_containers_along(boxes: Lab, docker_engine: TestEngine) -> None:
    boxes.runner.start(boxes.spec("a1", LONG))
    boxes.printed("a1")
    hello = dict(boxes.keeper.hello)
    os.kill(hello["guard_pid"], signal.SIGTERM)
    assert boxes.ended("a1").stop_cause == "keeper_shutdown"
    eventually(lambda: not is_running(hello["guard_pid"]), "end of the guard")
    assert containers(docker_engine, boxes) == []
