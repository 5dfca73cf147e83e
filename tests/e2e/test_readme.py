"""The shell examples of the README do what it says, typed as they stand (but for ports and paths)."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

from app.local.demo.fabric import Fabric
from tests.e2e.conftest import CFAB, ROOT, Shell


def test_the_examples_work(cfab: Shell, fabric: Fabric, tmp_path: Path) -> None:
    command = tmp_path / "cfab"
    command.write_text(f"#!{CFAB[0]}\nfrom app.cli.main import main\nmain()\n")
    command.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    examples = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    for written, here in {
        "127.0.0.1:8080": f"127.0.0.1:{fabric.port}",
        ".venv/bin/cfab": str(command),
        "/tmp/programs": str(tmp_path / "programs"),
        "9000": str(port),
    }.items():
        assert written in examples
        examples = examples.replace(written, here)
    # The web server needs a moment before a worker can fetch from it; a person who types gives it that.
    listening = f"until (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done\n"
    examples = examples.replace("SHA256=", listening + "SHA256=", 1)
    script = "set -eu\ntrap 'kill $(jobs -p)' EXIT\n" + examples
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=100, check=False, env=cfab.environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '{"status":"healthy","database":"connected"}' in re.sub(r"\s", "", done.stdout)
    assert done.stdout.count("hello world") >= 2 and "event: end" in done.stdout
    assert '"state_detail"' in done.stdout
    assert '"status":"submitted"' in done.stdout
    assert '"job_type":"square"' in done.stdout, "a job of one contract shows in another"
    assert '"id":"job-001"' in done.stdout
