"""What only real processes can show: nothing outlives a job, a keeper, a lease or a full disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import PLAIN
from tests.conformance.lab import PATH, Lab, boottime, eventually
from workers.keeper.processes import all_pids, is_zombie
from workers.runners import keeper_client
from workers.runners.base import RunnerUnavailable, StartRefused
from workers.runners.fake import Script
from workers.runners.keeper_client import ALREADY_SERVED, KeeperOptions, connect
from workers.runners.process import ProcessRunner
from workers.spool import STDOUT

LONG = Script(duration_s=None, output="ready\n")


def unique_sleep() -> str:
    """Return arguments for a sleep that can be found again among all processes."""
    return f"{1000 + secrets.randbelow(8000)}.{secrets.randbelow(10**9):09d}"


def alive(sleep: str) -> list[int]:
    """Return the processes that have the argument and have not ended."""
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[:1] == [b"sleep"] and sleep.encode() in words and not is_zombie(pid):
                found.append(pid)
    return found


# A daemon as it is in the books (two forks and a session of its own), and one that also hides its environment.
DAEMONS = {
    "background": "sleep {s} &",
    "daemon": "(setsid sh -c 'sleep {s} & sleep {s}' &)",
    "hidden": "(env -i PATH=$PATH setsid sh -c 'sleep {s} & sleep {s}' >/dev/null 2>&1 </dev/null &)",
}


@pytest.mark.parametrize("kind", DAEMONS)
def test_no_process_outlives_its_job(keeper_lab: Lab, kind: str) -> None:
    sleep = unique_sleep()
    record = keeper_lab.run_program("a1", ["/bin/sh", "-c", DAEMONS[kind].format(s=sleep) + "\nexit 4"])
    assert alive(sleep) == []
    assert (record.exit_code, record.survivors) == (4, 0)


@pytest.mark.parametrize("kind", DAEMONS)
def test_stop_takes_daemons_along(keeper_lab: Lab, kind: str) -> None:
    sleep = unique_sleep()
    program = DAEMONS[kind].format(s=sleep) + "\necho ready\nsleep 1000"
    keeper_lab.runner.start(keeper_lab.program("a1", ["/bin/sh", "-c", program]))
    keeper_lab.printed("a1")
    eventually(lambda: alive(sleep), "daemon")
    keeper_lab.runner.stop("a1", 0.2, "cancel")
    keeper_lab.ended("a1")
    assert alive(sleep) == []


def test_grandchild_that_holds_the_pipe_does_not_hold_up_the_end(keeper_lab: Lab) -> None:
    sleep = unique_sleep()
    record = keeper_lab.run_program("a1", ["/bin/sh", "-c", f"setsid sleep {sleep} & echo done; exit 0"])
    assert record.exit_code == 0
    assert keeper_lab.text("a1") == "done\n"
    assert alive(sleep) == []


@pytest.mark.parametrize("kind", DAEMONS)
def test_killed_keeper_takes_its_jobs_along_and_the_next_one_tells(keeper_lab: Lab, kind: str) -> None:
    sleep = unique_sleep()
    program = DAEMONS[kind].format(s=sleep) + f"\necho ready\nsleep {sleep}"
    keeper_lab.runner.start(keeper_lab.program("a1", ["/bin/sh", "-c", program], attempt=3))
    keeper_lab.printed("a1")
    eventually(lambda: len(alive(sleep)) >= 2, "all processes")
    os.kill(keeper_lab.keeper.hello["pid"], signal.SIGKILL)
    record = keeper_lab.ended("a1")
    assert alive(sleep) == []
    assert record.keeper_lost and record.attempt == 3
    assert (record.exit_code, record.signal, record.survivors) == (None, None, 0)
    assert keeper_lab.text("a1") == "ready\n"


@pytest.mark.parametrize("kind", ["background", "daemon"])
def test_next_keeper_ends_what_both_dead_processes_left(keeper_lab: Lab, kind: str) -> None:
    sleep = unique_sleep()
    program = DAEMONS[kind].format(s=sleep) + f"\necho ready\nsleep {sleep}"
    keeper_lab.runner.start(keeper_lab.program("a1", ["/bin/sh", "-c", program]))
    keeper_lab.printed("a1")
    hello = dict(keeper_lab.keeper.hello)
    os.kill(hello["guard_pid"], signal.SIGSTOP)
    os.kill(hello["pid"], signal.SIGKILL)
    os.kill(hello["guard_pid"], signal.SIGKILL)
    record = keeper_lab.ended("a1")
    assert record.keeper_lost
    assert alive(sleep) == []


def test_keeper_without_its_guard_ends_in_order(keeper_lab: Lab) -> None:
    keeper_lab.runner.start(keeper_lab.spec("a1", LONG))
    keeper_lab.printed("a1")
    os.kill(keeper_lab.keeper.hello["guard_pid"], signal.SIGKILL)
    record = keeper_lab.ended("a1")
    assert (record.stop_cause, record.keeper_lost) == ("keeper_shutdown", False)


@pytest.mark.parametrize("which", ["pid", "guard_pid"])
def test_sigterm_ends_jobs_with_a_record(plain_lab: Lab, which: str) -> None:
    plain_lab.runner.start(plain_lab.spec("a1", LONG))
    plain_lab.printed("a1")
    os.kill(plain_lab.keeper.hello[which], signal.SIGTERM)
    assert plain_lab.ended("a1").stop_cause == "keeper_shutdown"


def test_lease_is_enforced_while_the_agent_is_gone(keeper_lab: Lab) -> None:
    sleep = unique_sleep()
    program = f"trap '' TERM\necho ready\nsleep {sleep}"
    keeper_lab.runner.start(keeper_lab.program("a1", ["/bin/sh", "-c", program], deadline=boottime() + 5.0))
    keeper_lab.printed("a1")
    eventually(lambda: alive(sleep), "job")
    keeper_lab.runner.close()
    eventually(lambda: not alive(sleep), "end by the keeper alone")
    keeper_lab.open()
    # Its last process is gone before its record is there.
    (held,) = eventually(lambda: [one for one in keeper_lab.runner.attach() if one.record is not None], "record")
    assert held.record.lease_lost


def test_endless_output_neither_blocks_nor_grows_the_keeper(plain_lab: Lab) -> None:
    program = "head -c 300000000 /dev/zero"
    plain_lab.runner.start(plain_lab.program("a1", ["/bin/sh", "-c", program], log_cap_bytes=1_000_000))
    plain_lab.runner.start(plain_lab.program("a2", ["/usr/bin/yes"], log_cap_bytes=1_000_000))
    record = plain_lab.ended("a1")
    assert record.truncated_bytes == 299_000_000
    status = Path(f"/proc/{plain_lab.keeper.hello['pid']}/status").read_text(encoding="ascii")
    memory_kib = int(status.split("VmHWM:")[1].split()[0])
    assert memory_kib < 40_000
    plain_lab.runner.stop("a2", 10.0, "cancel")
    assert plain_lab.ended("a2").signal == signal.SIGTERM


def test_memory_limit_kills_and_says_so(cgroup_lab: Lab) -> None:
    program = "head -c 200000000 /dev/zero | tail -c 200000000 | wc -c"
    record = cgroup_lab.run_program("a1", ["/bin/sh", "-c", program], memory_bytes=32 << 20)
    assert record.oom
    assert record.peak_memory_bytes is not None and record.peak_memory_bytes <= 32 << 20


def test_memory_within_the_limit_is_no_oom(cgroup_lab: Lab) -> None:
    record = cgroup_lab.run("a1", Script(output="x"), memory_bytes=64 << 20)
    assert not record.oom and record.exit_code == 0


def test_cpu_limit_holds(cgroup_lab: Lab) -> None:
    record = cgroup_lab.run_program(
        "a1", ["/bin/sh", "-c", "while :; do :; done"], cpus_milli=100, time_limit_s=1.5, grace_s=0.1
    )
    assert record.limit_hit == "time"
    assert record.cpu_seconds is not None and record.cpu_seconds < 0.6


def test_processes_are_limited_and_a_fork_bomb_ends(sandbox_lab: Lab) -> None:
    program = "b() { b | b & }; b; echo ready; sleep 1000"
    sandbox_lab.runner.start(sandbox_lab.program("a1", ["/bin/sh", "-c", program], pids_max=50))
    sandbox_lab.printed("a1")
    sandbox_lab.runner.kill("a1", "cancel")
    assert sandbox_lab.ended("a1").survivors == 0


def test_fork_bomb_of_a_slot_user_ends(slot_lab: Lab) -> None:
    program = "b() { b | b & }; b; echo ready; sleep 1000"
    slot_lab.runner.start(slot_lab.program("a1", ["/bin/sh", "-c", program], pids_max=50))
    slot_lab.printed("a1")
    slot_lab.runner.kill("a1", "cancel")
    assert slot_lab.ended("a1").survivors == 0


def test_busy_slot_is_refused(slot_lab: Lab) -> None:
    slot_lab.runner.start(slot_lab.spec("a1", LONG, slot=4))
    with pytest.raises(StartRefused, match="slot 4") as refused:
        slot_lab.runner.start(slot_lab.spec("a2", LONG, slot=4))
    assert refused.value.code == "slot"


def test_script_without_its_interpreter_is_a_spawn_error(keeper_lab: Lab) -> None:
    script = keeper_lab.directory / "script"
    script.write_text("#!/nonexistent/python\n", encoding="ascii")
    script.chmod(0o755)
    record = keeper_lab.run_program("a1", ["script"], executable=str(script))
    assert record.spawn_error is not None and "/nonexistent/python" in record.spawn_error


def test_file_that_is_no_program_is_a_spawn_error(plain_lab: Lab) -> None:
    file = plain_lab.directory / "data"
    file.write_bytes(b"\x00\x01\x02")
    file.chmod(0o755)
    record = plain_lab.run_program("a1", ["data"], executable=str(file))
    assert record.spawn_error is not None and "not a program" in record.spawn_error


def test_environment_is_exactly_the_spec_and_the_marker(keeper_lab: Lab) -> None:
    keeper_lab.run_program("a1", ["/usr/bin/env"], env={"PATH": PATH, "GREETING": "hello world"})
    names = {line.split("=")[0] for line in keeper_lab.text("a1").splitlines()}
    assert names - {"PWD"} == {"PATH", "GREETING", "CFAB_ATTEMPT_TOKEN"}
    assert "GREETING=hello world" in keeper_lab.text("a1")


def test_job_runs_in_its_own_directory_without_core_files(keeper_lab: Lab) -> None:
    keeper_lab.run_program("a1", ["/bin/sh", "-c", "pwd; ulimit -c; ulimit -n; touch here && ls"])
    work = keeper_lab.runner.work_dir("a1")
    assert keeper_lab.text("a1").splitlines() == [work, "0", "1024", "here"]


def test_program_may_be_found_in_the_jobs_own_path(keeper_lab: Lab) -> None:
    assert keeper_lab.run_program("a1", ["true"]).exit_code == 0
    missing = keeper_lab.run_program("a2", ["no-such-program"])
    assert missing.spawn_error is not None and "no-such-program" in missing.spawn_error


def test_privileges_are_gone(keeper_lab: Lab) -> None:
    keeper_lab.run_program("a1", ["/bin/cat", "/proc/self/status"])
    status = dict(line.split(":\t", 1) for line in keeper_lab.text("a1").splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    if keeper_lab.mode.uid_base is not None:
        # The keeper takes the first range that no other keeper of this host holds; slot 0 is its first user.
        uids = {int(word) for word in status["Uid"].split()}
        assert len(uids) == 1
        assert uids.pop() in range(keeper_lab.mode.uid_base, keeper_lab.mode.uid_base + 64_000, 1000)
        assert all(status[kind].strip("0") == "" for kind in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"))
        assert status["Groups"].strip() == ""


@pytest.fixture
def ignored_signals() -> Iterator[None]:
    """What a shell's background job, under nohup, ignores and passes on to all that it starts."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_job_begins_with_default_signals(ignored_signals: None, keeper_lab: Lab) -> None:
    keeper_lab.run_program("a1", ["/bin/cat", "/proc/self/status"])
    status = dict(line.split(":\t", 1) for line in keeper_lab.text("a1").splitlines() if ":\t" in line)
    # The C library's own two, 32 and 33, may be ignored: it leaves them so in everything that posix_spawn starts.
    assert {int(status[kind], 16) & 0x7FFFFFFF for kind in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")} == {0}


def test_no_descriptor_of_the_keeper_reaches_a_job(keeper_lab: Lab) -> None:
    keeper_lab.run_program("a1", ["/bin/ls", "/proc/self/fd"])
    assert set(keeper_lab.text("a1").split()) == {"0", "1", "2", "3"}


def test_many_files_are_removed_without_holding_up(keeper_lab: Lab) -> None:
    keeper_lab.run_program("a1", ["/bin/sh", "-c", "mkdir -p a/b/c; for i in $(seq 300); do echo > a/$i; done"])
    keeper_lab.runner.forget(["a1"])
    root = keeper_lab.directory
    assert not (root / "attempts" / "a1").exists()
    eventually(lambda: not list((root / "trash").iterdir()), "empty trash")


def keeper_children(lab: Lab) -> dict[int, bytes]:
    """Return the keeper's children with their command lines."""
    pid = lab.keeper.hello["pid"]
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in found}


def test_no_child_stays_unreaped(keeper_lab: Lab) -> None:
    for number in range(5):
        keeper_lab.run_program(f"a{number}", ["/bin/sh", "-c", "(setsid true &) ; true"], slot=number)
    eventually(lambda: all(b"zygote.py" in command for command in keeper_children(keeper_lab).values()), "empty house")


def test_killed_zygote_is_replaced(zygote_lab: Lab) -> None:
    assert zygote_lab.run("a1", Script()).exit_code == 0
    (zygote,) = [pid for pid, command in keeper_children(zygote_lab).items() if b"zygote.py" in command]
    os.kill(zygote, signal.SIGKILL)
    eventually(lambda: zygote not in keeper_children(zygote_lab), "end of the zygote")
    assert zygote_lab.run("a2", Script(exit_code=7)).exit_code == 7


def test_second_keeper_is_refused(plain_lab: Lab) -> None:
    done = subprocess.run(
        KeeperOptions(plain_lab.directory).command(), capture_output=True, check=False, env={}, timeout=30
    )
    assert done.returncode == ALREADY_SERVED
    assert b"another keeper serves" in done.stderr


def test_keeper_that_cannot_start_says_why(node_directory: Path) -> None:
    with pytest.raises(RunnerUnavailable, match="uid-base 5"):
        ProcessRunner(KeeperOptions(node_directory, uid_base=5))


def test_full_disk_costs_output_and_nothing_else(node_directory: Path) -> None:
    disk = node_directory / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=711", "none", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk here: {mounted.stderr.decode().strip()}")
    lab = Lab(PLAIN, disk)
    try:
        record = lab.run("a1", Script(floods_bytes=4_000_000, exit_code=6))
        assert record.exit_code == 6
        assert record.truncated_bytes > 2_000_000
        assert len(lab.text("a1")) + record.truncated_bytes == 4_000_000
        with pytest.raises(StartRefused, match="No space left"):
            for number in range(2000):
                lab.runner.start(lab.spec(f"b{number}", Script()))
    finally:
        lab.close()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_bad_requests_are_answered_and_harm_nothing(plain_lab: Lab) -> None:
    sock = connect(plain_lab.directory)
    with sock, sock.makefile("rb") as lines:
        for line in (b"not json", b'{"cmd": "fly", "id": 1}', b'{"cmd": "start", "id": 2}', b"[]", b'{"cmd": {}}'):
            sock.sendall(line + b"\n")
            assert b'"error"' in lines.readline()
        sock.shutdown(socket.SHUT_WR)
    assert plain_lab.run("a1", Script()).exit_code == 0


def test_slow_client_is_told_to_ask_again(plain_lab: Lab) -> None:
    sock = connect(plain_lab.directory)
    with sock:
        sock.sendall(b'{"cmd": "hello", "id": 1}\n')
        # It asks for far more than the sockets hold and reads none of it meanwhile.
        plain_lab.run("a1", Script())
        for _ in range(40):
            sock.sendall(b'{"cmd": "list", "id": 2}\n' * 500)
        assert plain_lab.run("a2", Script()).exit_code == 0
        sock.shutdown(socket.SHUT_WR)


def test_hidden_host_is_hidden(sandbox_lab: Lab) -> None:
    secret = sandbox_lab.directory / "secret"
    secret.write_text("s", encoding="ascii")
    program = f"ls {sandbox_lab.directory}; cat {secret}; ls /root /home; echo x > /usr/x; echo x > /x; ls /proc"
    sandbox_lab.run_program("a1", ["/bin/sh", "-c", program])
    said = sandbox_lab.text("a1", 1).split()
    assert "attempts" in said and "secret" not in said and "keeper.sock" not in said
    errors = sandbox_lab.text("a1", 2)
    assert errors.count("No such file") == 3
    assert errors.count("Read-only file system") == 2
    assert len([name for name in said if name.isdigit()]) <= 4


def test_listed_directories_are_covered(sandbox_lab: Lab) -> None:
    sandbox_lab.run_program("a1", ["/bin/sh", "-c", "ls /usr/share | wc -l"], hide=["/usr/share", "/nonexistent"])
    assert sandbox_lab.text("a1").strip() == "0"


def test_network_can_be_taken_away(sandbox_lab: Lab) -> None:
    sandbox_lab.run_program("a1", ["/bin/cat", "/proc/net/dev"], network="none")
    assert "eth" not in sandbox_lab.text("a1") and "lo:" in sandbox_lab.text("a1")


def test_artifact_is_readable_and_not_writable(sandbox_lab: Lab) -> None:
    cache = sandbox_lab.directory / "cache"
    cache.mkdir(mode=0o711)
    artifact = cache / "abc"
    artifact.write_text('#!/bin/sh\necho "$0 $1"; echo x >> "$0"\n', encoding="ascii")
    artifact.chmod(0o777)
    sandbox_lab.run_program("a1", ["abc", "one"], executable=str(artifact))
    assert sandbox_lab.text("a1", 1) == f"{artifact} one\n"
    assert "Read-only" in sandbox_lab.text("a1", 2)


def test_nested_namespaces_are_refused(sandbox_lab: Lab) -> None:
    record = sandbox_lab.run_program("a1", ["/usr/bin/unshare", "--user", "true"])
    assert record.exit_code not in (0, None)


def test_job_reads_its_files_and_cannot_change_them(keeper_lab: Lab) -> None:
    folder = keeper_lab.runner.files_dir("a1")
    program = f"cat {folder}/config.json; echo no 2>/dev/null >>{folder}/config.json || echo; ls {folder}"
    keeper_lab.run_program("a1", ["/bin/sh", "-c", program], files={"config.json": '{"a":"\u2603"}'})
    if keeper_lab.mode.uid_base is not None or keeper_lab.mode.bwrap or os.geteuid() != 0:
        assert keeper_lab.text("a1", STDOUT) == '{"a":"\u2603"}\nconfig.json\n'
    else:
        assert keeper_lab.text("a1", STDOUT).startswith('{"a":"\u2603"}')


def test_files_are_for_no_other_job(slot_lab: Lab) -> None:
    slot_lab.runner.start(slot_lab.program("a1", ["/bin/sh", "-c", "echo ready; sleep 1000"], files={"secret": "x"}))
    slot_lab.printed("a1")
    folder = slot_lab.runner.files_dir("a1")
    record = slot_lab.run_program("a2", ["/bin/cat", f"{folder}/secret"], slot=1)
    assert (record.exit_code, slot_lab.text("a2", STDOUT)) == (1, "")


def test_next_keeper_removes_the_files_of_a_lost_job(keeper_lab: Lab) -> None:
    program = keeper_lab.program("a1", ["/bin/sh", "-c", "echo ready; sleep 1000"], files={"secret": "x"})
    keeper_lab.runner.start(program)
    keeper_lab.printed("a1")
    os.kill(keeper_lab.keeper.hello["pid"], signal.SIGKILL)
    assert keeper_lab.ended("a1").keeper_lost
    assert not Path(keeper_lab.runner.files_dir("a1")).exists()


def test_what_the_job_put_among_its_files_does_not_reach_the_next_one(plain_lab: Lab) -> None:
    folder = plain_lab.runner.files_dir("a1")
    plain_lab.run_program("a1", ["/bin/mkdir", "-p", f"{folder}/deep/er"], files={"a": "x"})
    plain_lab.runner.forget(["a1"])
    assert not Path(folder).exists()
    plain_lab.run("a2", Script())
    assert not Path(plain_lab.runner.files_dir("a2")).exists()


def test_start_and_output_are_told_again_after_a_broken_connection(plain_lab: Lab) -> None:
    plain_lab.runner.start(plain_lab.spec("a1", LONG))
    plain_lab.printed("a1")
    plain_lab.seen.events.clear()
    sock = plain_lab.keeper._client._sock
    assert sock is not None
    sock.shutdown(socket.SHUT_RDWR)
    plain_lab.seen.until(lambda: plain_lab.seen.has_started("a1"), "start of a1 told again")
    plain_lab.printed("a1")


@pytest.mark.parametrize("answer", [b"nonsense\n", b'{"error": "no", "code": "unknown"}\n' * 2, b"[]\n[]\n"])
def test_keeper_that_is_not_understood_is_asked_again(plain_lab: Lab, node_directory: Path, answer: bytes) -> None:
    """Something else listens on the socket for a moment; then the keeper is there again."""
    plain_lab.run("a1", Script())
    path, aside = node_directory / "keeper.sock", node_directory / "aside"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        path.rename(aside)
        stranger.bind(str(path))
        stranger.listen()
        sock = plain_lab.keeper._client._sock
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        met, _ = stranger.accept()
        with met:
            met.sendall(answer)
            aside.rename(path)
            while met.recv(4096):
                pass
    assert [held.attempt_id for held in plain_lab.runner.attach()] == ["a1"]


def test_hung_keeper_is_not_waited_for_by_all(plain_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_client, "SEND_TIMEOUT_S", 0.2)
    plain_lab.reopen()
    pid = plain_lab.keeper.hello["pid"]
    client = plain_lab.keeper._client
    os.kill(pid, signal.SIGSTOP)
    try:
        much = threading.Thread(
            target=lambda: client.call_many([{"cmd": "list", "unused": "x" * 4_000_000}], 60), daemon=True
        )
        much.start()
        eventually(client._lock.locked, "sender that waits for the keeper")
        with pytest.raises(RunnerUnavailable):
            client.call("list", timeout_s=1.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert plain_lab.runner.attach() == []
    much.join(30)
    assert not much.is_alive()


def test_older_keeper_is_not_sent_what_it_does_not_know(plain_lab: Lab) -> None:
    plain_lab.keeper._client.hello = {**plain_lab.keeper.hello, "version": 1}
    specs = [plain_lab.spec("a1", Script(), files={"a": "x"}), plain_lab.spec("a2", Script())]
    refused, started = plain_lab.runner.start_many(specs)
    assert isinstance(refused, StartRefused) and refused.code == "old"
    assert started is True
    assert [held.attempt_id for held in plain_lab.runner.attach()] == ["a2"]
