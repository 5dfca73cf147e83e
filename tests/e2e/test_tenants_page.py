"""The shell examples of docs/tenants.md do what the page says, typed as they stand (but for ports and paths)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from app.local.demo.fabric import Fabric
from tests.e2e.conftest import CFAB, ROOT, Shell


def test_the_examples_work(cfab: Shell, fabric: Fabric, tmp_path: Path) -> None:
    command = tmp_path / "cfab"
    command.write_text(f"#!{CFAB[0]}\nfrom app.cli.main import main\nmain()\n")
    command.chmod(0o755)
    page = (ROOT / "docs" / "tenants.md").read_text()
    examples = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    for written, here in {"127.0.0.1:8080": f"127.0.0.1:{fabric.port}", ".venv/bin/cfab": str(command)}.items():
        assert written in examples
        examples = examples.replace(written, here)
    done = subprocess.run(
        ["bash", "-c", "set -eu\n" + examples],
        capture_output=True, text=True, timeout=100, check=False, env=cfab.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    made, shown, _listed, changed, refused = answers
    assert made == shown
    assert changed["quota"] == {"jobs": 10, "cpus": None, "memory_mib": 8192, "gpus": 0, "gpu_memory_mb": None}
    promised = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert promised is not None
    assert refused == json.loads(promised[1])
    assert "GPUs          ░░░░░░░░░░░░░░░░░░░░  0 of 4" in done.stdout


def test_a_refusal_ends_the_command_with_its_code(cfab: Shell) -> None:
    assert cfab("tenant", "create", "twice").returncode == 0
    again = cfab("tenant", "create", "twice")
    assert (again.returncode, "already" in again.stderr) == (4, True)
    assert cfab("tenant", "show", "no-such").returncode == 5
    assert cfab("tenant", "set", "twice").returncode == 2
    assert cfab("tenant", "set", "twice", "--inactive", "--json").returncode == 0
    assert json.loads(cfab("tenant", "show", "twice", "--json").stdout)["active"] is False
