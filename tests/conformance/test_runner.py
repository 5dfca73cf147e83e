"""What every runner promises, tried on the fake one and on real processes in each mode."""

from __future__ import annotations

import pytest

from tests.conformance.lab import Lab, boottime
from workers.runners.base import PrepareCancelled, RunnerError, StartRefused
from workers.runners.fake import Script
from workers.spool import STDERR, STDOUT

LONG = Script(duration_s=None, output="ready\n")
STUBBORN = Script(duration_s=None, output="ready\n", ignores_sigterm=True)


def test_exit_code_zero_and_times_are_recorded(lab: Lab) -> None:
    before = boottime()
    record = lab.run("a1", Script())
    assert (record.exit_code, record.signal, record.spawn_error, record.stop_cause) == (0, None, None, None)
    assert record.job_id == "job-1"
    assert record.started_boottime is not None and record.ended_boottime is not None
    assert before <= record.started_boottime <= record.ended_boottime <= boottime()
    assert lab.seen.has_started("a1")


@pytest.mark.parametrize("code", [1, 77, 126, 200, 255])
def test_exit_code_is_kept(lab: Lab, code: int) -> None:
    record = lab.run("a1", Script(exit_code=code))
    assert (record.exit_code, record.signal) == (code, None)


def test_exit_code_that_looks_like_a_signal_is_not_taken_for_one(lab: Lab) -> None:
    assert lab.run("a1", Script(exit_code=143)).exit_code == 143


@pytest.mark.parametrize("number", [9, 11])
def test_death_by_signal_is_told_as_a_signal(lab: Lab, number: int) -> None:
    record = lab.run("a1", Script(signal=number))
    assert (record.exit_code, record.signal, record.stop_cause) == (None, number, None)


def test_output_of_both_streams_is_spooled_in_order(lab: Lab) -> None:
    record = lab.run("a1", Script(output="one\ntwo\n", stderr="three\n"))
    assert lab.text("a1", STDOUT) == "one\ntwo\n"
    assert lab.text("a1", STDERR) == "three\n"
    walls = [frame.wall_time for frame in lab.frames("a1")]
    assert walls == sorted(walls)
    assert record.spool_bytes > 0 and record.truncated_bytes == 0


def test_stop_ends_with_sigterm_and_tells_the_cause(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", LONG))
    lab.printed("a1")
    lab.runner.stop("a1", 30.0, "preempt")
    record = lab.ended("a1")
    assert (record.exit_code, record.signal, record.stop_cause) == (None, 15, "preempt")


def test_ignored_stop_is_followed_by_a_kill(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", STUBBORN))
    lab.printed("a1")
    lab.runner.stop("a1", 0.2, "cancel")
    record = lab.ended("a1")
    assert (record.signal, record.stop_cause) == (9, "cancel")


def test_stop_right_after_start_is_not_lost(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", LONG))
    lab.runner.stop("a1", 60.0, "cancel")
    assert lab.ended("a1").stop_cause == "cancel"


def test_second_stop_shortens_the_grace_and_cancel_wins(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", STUBBORN))
    lab.printed("a1")
    lab.runner.stop("a1", 60.0, "drain")
    lab.runner.stop("a1", 0.1, "cancel")
    assert lab.ended("a1").stop_cause == "cancel"


def test_kill_ends_at_once(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", STUBBORN))
    lab.printed("a1")
    lab.runner.kill("a1", "fence")
    record = lab.ended("a1")
    assert (record.signal, record.stop_cause) == (9, "fence")


def test_stop_after_the_end_changes_nothing(lab: Lab) -> None:
    lab.run("a1", Script(exit_code=3))
    lab.runner.stop("a1", 1.0, "cancel")
    lab.runner.kill("a1", "cancel")
    (held,) = lab.runner.attach()
    assert held.record is not None
    assert (held.record.exit_code, held.record.stop_cause) == (3, None)


def test_stop_of_an_unknown_attempt_is_fine(lab: Lab) -> None:
    lab.runner.stop("nobody", 1.0, "cancel")
    lab.runner.kill("nobody", "cancel")


def test_second_start_starts_nothing(lab: Lab) -> None:
    spec = lab.spec("a1", LONG)
    assert lab.runner.start(spec) is True
    assert lab.runner.start(spec) is False
    lab.runner.kill("a1", "test")
    lab.ended("a1")
    assert lab.runner.start(spec) is False
    assert len(lab.runner.attach()) == 1


def test_start_many_answers_each(lab: Lab) -> None:
    good = lab.spec("a1", Script())
    late = lab.spec("a2", Script(), deadline=boottime() - 1, slot=1)
    answers = lab.runner.start_many([good, late, good])
    assert answers[0] is True and answers[2] is False
    assert isinstance(answers[1], StartRefused) and answers[1].code == "deadline"
    lab.ended("a1")


def test_forget_twice_and_never_again(lab: Lab) -> None:
    spec = lab.spec("a1", Script())
    lab.runner.start(spec)
    lab.ended("a1")
    lab.runner.forget(["a1"])
    lab.runner.forget(["a1"])
    assert lab.runner.attach() == []
    with pytest.raises(StartRefused) as refused:
        lab.runner.start(spec)
    assert refused.value.code == "forgotten"


def test_forget_of_a_running_attempt_is_refused(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", LONG))
    with pytest.raises(RunnerError, match="still running"):
        lab.runner.forget(["a1"])


def test_attach_after_a_restart_finds_running_and_ended(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", LONG, slot=1, member=2))
    lab.run("a2", Script(exit_code=5), slot=2)
    lab.reopen()
    held = {entry.attempt_id: entry for entry in lab.runner.attach()}
    assert held["a1"].running and held["a1"].member == 2 and held["a1"].slot == 1
    assert held["a2"].record is not None and held["a2"].record.exit_code == 5
    lab.runner.kill("a1", "test")
    assert lab.ended("a1").signal == 9


def test_passed_lease_deadline_kills(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", STUBBORN, deadline=boottime() + 0.3))
    record = lab.ended("a1")
    assert record.lease_lost and record.signal == 9
    assert record.ended_boottime is not None and record.started_boottime is not None
    assert record.ended_boottime - record.started_boottime >= 0.25


def test_extended_lease_lets_it_live(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", Script(duration_s=0.6), deadline=boottime() + 0.4))
    assert lab.runner.extend({"a1": boottime() + 60, "nobody": boottime() + 60}) == ["nobody"]
    record = lab.ended("a1")
    assert record.exit_code == 0 and not record.lease_lost


def test_time_limit_sends_sigterm(lab: Lab) -> None:
    record = lab.run("a1", LONG, time_limit_s=0.3, grace_s=30.0)
    assert (record.limit_hit, record.signal, record.stop_cause) == ("time", 15, None)


def test_time_limit_kills_after_the_grace(lab: Lab) -> None:
    record = lab.run("a1", STUBBORN, time_limit_s=0.3, grace_s=0.2)
    assert (record.limit_hit, record.signal) == ("time", 9)


def test_flood_is_capped_and_counted(lab: Lab) -> None:
    record = lab.run("a1", Script(floods_bytes=3_000_000), log_cap_bytes=100_000)
    assert len(lab.text("a1")) == 100_000
    assert record.truncated_bytes == 2_900_000
    assert record.exit_code == 0


def test_missing_program_is_a_spawn_error(lab: Lab) -> None:
    record = lab.run("a1", Script(spawn_error="/nonexistent/program: No such file or directory"))
    assert record.spawn_error is not None and "/nonexistent/program" in record.spawn_error
    assert (record.exit_code, record.signal) == (None, None)


def test_prepare_refuses_bad_values_and_stops_when_cancelled(lab: Lab) -> None:
    good = lab.spec("a1", Script())
    assert lab.runner.prepare(good, lambda: False) == good
    with pytest.raises(PrepareCancelled):
        lab.runner.prepare(good, lambda: True)
    with pytest.raises(RunnerError, match="memory_bytes"):
        lab.runner.prepare(lab.spec("a1", Script(), memory_bytes=-1), lambda: False)


def test_bad_spec_is_refused_by_name(lab: Lab) -> None:
    with pytest.raises(StartRefused, match="attempt_id") as refused:
        lab.runner.start(lab.spec("../escape", Script()))
    assert refused.value.code == "invalid"


def test_running_attempts_are_sampled(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", LONG))
    lab.printed("a1")
    (sample,) = lab.runner.samples()
    assert sample.attempt_id == "a1" and sample.memory_bytes > 0 and sample.cpu_seconds >= 0


FILES = {"config.json": '{"model":"resnet50","snowman":"\u2603"}', "empty": ""}


def test_files_come_with_the_job_and_go_with_it(lab: Lab) -> None:
    lab.runner.start(lab.spec("a1", LONG, files=FILES))
    lab.printed("a1")
    folder = lab.files_folder("a1")
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == FILES
    lab.runner.kill("a1", "test")
    lab.ended("a1")
    assert not folder.exists()
    lab.runner.forget(["a1"])
    lab.run("a2", Script())
    assert not lab.files_folder("a2").exists()


def test_attempt_with_bad_files_is_not_started(lab: Lab) -> None:
    with pytest.raises(StartRefused) as refused:
        lab.runner.start(lab.spec("a1", Script(), files={"../outside": "x"}))
    assert refused.value.code == "invalid"
    assert lab.runner.attach() == []
