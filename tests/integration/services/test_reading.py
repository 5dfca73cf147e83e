"""Reading: lists and counts agree, foreign jobs cannot be seen, output is contiguous and capped."""

from __future__ import annotations

from uuid import uuid4

import pytest

from app.domain.errors import NotFound
from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.phase import phases_of
from app.domain.policy import Ending
from app.domain.states import JobState
from app.services import logs, recover
from app.services.inspect import JobFilter, gauges, get_job, health, job_detail, list_jobs, stats
from app.services.logs import read_log
from app.services.report import Chunk, append_output
from app.storage import jobs
from tests.factories import BACKGROUND, FOREGROUND, Fabric, Node, job


def write(fabric: Fabric, taken: Assignment, text: bytes, position: int, stream: int = logs.STDOUT) -> int:
    """Stores one chunk; the position after it."""
    framed = logs.frame(stream, 1.5, text)
    append_output(fabric.db, [Chunk(taken.attempt_id, taken.log_day, position, len(framed), logs.PLAIN, framed)])
    return position + len(framed)


def told(fabric: Fabric, taken: Assignment, after: int = 0) -> list[bytes]:
    return [frame.data for frame in read_log(fabric.db, DEFAULT_TENANT, taken.job_id, after=after).frames]


def test_a_filter_that_does_not_exist_is_never_left_out_in_silence(fabric: Fabric) -> None:
    with fabric.db.transaction("read") as tx, pytest.raises(ValueError, match="unknown filters: state;"):
        jobs.count_jobs(tx, DEFAULT_TENANT, {"state": 0})


def test_lists_are_newest_first_and_their_totals_exact(fabric: Fabric, node: Node) -> None:
    sent = fabric.submit(*[job(type="ab"[n % 2], priority_class=(FOREGROUND, BACKGROUND)[n % 2]) for n in range(10)])
    fabric.claim(node, 3)
    for wanted in (
        JobFilter(),
        JobFilter(type="a"),
        JobFilter(priority_class=BACKGROUND),
        JobFilter(phases=phases_of({JobState.PENDING})),
        JobFilter(phases=phases_of({JobState.STARTING}), type="a"),
        JobFilter(phases=phases_of({JobState.FAILED})),
    ):
        for _ in range(2):
            views, total = list_jobs(fabric.db, DEFAULT_TENANT, wanted, 100, 0)
            assert total == len(views)
            recover.fold_stats(fabric.db)
        page, total_again = list_jobs(fabric.db, DEFAULT_TENANT, wanted, 2, 1)
        assert ([v.id for v in page], total_again) == ([v.id for v in views][1:3], total)
    assert [v.id for v in list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(), 100, 0)[0]] == sent[::-1]


def test_a_tenant_sees_only_its_own(fabric: Fabric) -> None:
    other = fabric.add_tenant()
    job_id = fabric.submit_one()
    for read in (get_job, job_detail):
        with pytest.raises(NotFound):
            read(fabric.db, other, job_id)
    assert list_jobs(fabric.db, other, JobFilter(), 100, 0) == ([], 0)
    assert stats(fabric.db, other).by_state[JobState.PENDING] == 0
    assert stats(fabric.db, None).by_state[JobState.PENDING] == 1


def test_numbers_are_zero_filled_and_exact(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(priority_class=FOREGROUND), job(), job())
    fabric.finish(fabric.run(node))
    numbers = stats(fabric.db, DEFAULT_TENANT)
    assert {state.word: n for state, n in numbers.by_state.items() if n} == {"pending": 2, "completed": 1}
    assert set(numbers.by_state) == set(JobState)
    assert {c.word: n for c, n in numbers.pending_by_class.items()} == {
        "foreground": 0,
        "background": 2,
        "best_effort": 0,
    }
    assert numbers.active_executors == 1
    seen = gauges(fabric.db)
    assert (seen.jobs[("completed", "foreground")], seen.jobs[("pending", "background")]) == (1, 2)
    assert seen.executors == {"ready": 1, "draining": 0, "offline": 0}
    health(fabric.db)


def test_a_job_that_was_not_tried_has_an_empty_open_log(fabric: Fabric) -> None:
    log = read_log(fabric.db, DEFAULT_TENANT, fabric.submit_one())
    assert (list(log.frames), log.attempt, log.ended) == ([], 0, False)
    with pytest.raises(NotFound):
        read_log(fabric.db, DEFAULT_TENANT, uuid4())


def test_output_is_read_on_from_any_position_and_ends_with_the_attempt(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    middle = write(fabric, taken, b"one", 0)
    end = write(fabric, taken, b"two", middle, logs.STDERR)
    log = read_log(fabric.db, DEFAULT_TENANT, taken.job_id)
    assert [(f.stream, f.at, f.data) for f in log.frames] == [(1, 1.5, b"one"), (2, 1.5, b"two")]
    assert (log.next_position, log.ended) == (end, False)
    assert told(fabric, taken, middle) == [b"two"]
    fabric.finish(taken)
    assert read_log(fabric.db, DEFAULT_TENANT, taken.job_id, after=end).ended


def test_nothing_behind_a_missing_chunk_is_told_while_it_may_still_come(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    size = len(logs.frame(1, 0, b"one"))
    write(fabric, taken, b"two", size)
    log = read_log(fabric.db, DEFAULT_TENANT, taken.job_id)
    assert (list(log.frames), log.next_position) == ([], 0)
    write(fabric, taken, b"one", 0)
    assert told(fabric, taken) == [b"one", b"two"]


def test_after_the_end_a_gap_is_passed_and_the_rest_is_told(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    end = write(fabric, taken, b"late", 500)
    fabric.finish(taken, log_gap=True)
    log = read_log(fabric.db, DEFAULT_TENANT, taken.job_id)
    told_gap, late = log.frames
    assert (told_gap.stream, told_gap.data) == (logs.FABRIC, b"[log gap: about 500 bytes are missing here]\n")
    assert (late.data, log.next_position, log.ended) == (b"late", end, False)
    assert log.log_gap
    rest = read_log(fabric.db, DEFAULT_TENANT, taken.job_id, after=end)
    assert ([f.data for f in rest.frames], rest.next_position, rest.ended) == (
        [b"[log gap: output may be missing here]\n"], end, True,
    )  # fmt: skip
    assert job_detail(fabric.db, DEFAULT_TENANT, taken.job_id).attempts[0].log_gap


def test_what_went_beyond_the_cap_is_said_behind_the_last_byte(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    end = write(fabric, taken, b"kept", 0)
    fabric.finish(taken, output_bytes=end, truncated_bytes=12)
    first = read_log(fabric.db, DEFAULT_TENANT, taken.job_id)
    assert ([f.data for f in first.frames], first.ended, first.truncated_bytes) == ([b"kept"], False, 12)
    rest = read_log(fabric.db, DEFAULT_TENANT, taken.job_id, after=first.next_position)
    assert [(f.stream, f.data) for f in rest.frames] == [(logs.FABRIC, b"[truncated: 12 bytes were dropped]\n")]
    assert (rest.next_position, rest.ended) == (first.next_position, True)


def test_a_foreign_job_has_no_log(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    for asked in (None, 1):
        with pytest.raises(NotFound, match="Job not found"):
            read_log(fabric.db, fabric.add_tenant(), taken.job_id, asked)


def test_a_log_is_told_in_bounded_slices(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    position = 0
    for n in range(7):
        position = write(fabric, taken, b"%d" % n, position)
    fabric.finish(taken)
    after, slices, ended = 0, [], False
    while not ended:
        log = read_log(fabric.db, DEFAULT_TENANT, taken.job_id, after=after, chunks=3)
        after, ended = log.next_position, log.ended
        slices.append(b"".join(f.data for f in log.frames))
    assert slices[:2] == [b"012", b"345"]
    assert b"".join(slices) == b"0123456"


def test_each_attempt_has_its_own_log_and_the_last_is_shown(fabric: Fabric, node: Node) -> None:
    fabric.submit_one(max_retries=1, backoff_s=0.0)
    for text in (b"first", b"second"):
        taken = fabric.run(node)
        write(fabric, taken, text, 0)
        fabric.finish(taken, Ending(exit_code=1))
    read = [read_log(fabric.db, DEFAULT_TENANT, taken.job_id, n).frames for n in (1, 2)]
    assert [[frame.data for frame in frames] for frames in read] == [[b"first"], [b"second"]]
    assert job_detail(fabric.db, DEFAULT_TENANT, taken.job_id).stdout == b"second"
    with pytest.raises(NotFound, match="no attempt 3"):
        read_log(fabric.db, DEFAULT_TENANT, taken.job_id, 3)


@pytest.mark.parametrize(("cap", "out", "cut"), [(3, b"aab", True), (4, b"aabb", False), (9, b"aabb", False)])
def test_the_beginning_of_each_stream_is_cut_at_a_cap(
    fabric: Fabric, node: Node, cap: int, out: bytes, cut: bool
) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    position = write(fabric, taken, b"aa", 0)
    position = write(fabric, taken, b"e", position, logs.STDERR)
    write(fabric, taken, b"bb", position)
    detail = job_detail(fabric.db, DEFAULT_TENANT, taken.job_id, cap)
    assert (detail.stdout, detail.stdout_truncated) == (out, cut)
    assert (detail.stderr, detail.stderr_truncated) == (b"e", False)
