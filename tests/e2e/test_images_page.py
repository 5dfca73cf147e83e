"""The shell examples of docs/images.md do what the page says, typed as they stand (but for ports and paths)."""

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
    page = (ROOT / "docs" / "images.md").read_text()
    examples = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    for written, here in {"127.0.0.1:8080": f"127.0.0.1:{fabric.port}", ".venv/bin/cfab": str(command)}.items():
        assert written in examples
        examples = examples.replace(written, here)
    done = subprocess.run(
        ["bash", "-c", "set -eu\n" + examples], cwd=tmp_path,
        capture_output=True, text=True, timeout=100, check=False, env=cfab.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    promised = re.search(r"```\n(policy .*?)```", page, re.DOTALL)
    assert promised is not None
    shown = re.sub(r"sha256:(....)[0-9a-f]{60}", r"sha256:\1…", done.stdout)
    assert promised[1] in re.sub(r"sha256:....…", "sha256:5d0c…", shown)
    first, second = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert first["credentials"] == second["credentials"] == {"ghcr.io": "team-ghcr"}
    assert (second["policy"], second["repositories"]) == ("digest", ["ghcr.io/acme", "docker.io/library"])


def test_what_cannot_be_ends_the_command_with_its_code(cfab: Shell, tmp_path: Path) -> None:
    assert cfab("tenant", "images", "no-such").returncode == 5
    assert cfab("tenant", "images", "default", "--no-key", "absent").returncode == 2
    assert cfab("tenant", "images", "default", "--key", f"ci={tmp_path}/absent").returncode == 2
    (tmp_path / "no-key").write_text("nonsense")
    refused = cfab("tenant", "images", "default", "--key", f"ci={tmp_path}/no-key")
    assert (refused.returncode, "is not a public key" in refused.stderr) == (4, True)
    assert "policy        off (the fabric's own)" in cfab("tenant", "images", "default").stdout
