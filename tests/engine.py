"""A Docker Engine and a registry of the tests' own; where they cannot be, tests are skipped, or fail in CI.

Nothing of a Docker Engine that this host may have is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
import requests

from app.local.ports import free_port
from workers.containers.engine import Engine, EngineError

TEST_IMAGE = "cfab-test:1"
START_S = 30.0
APPLETS = "sh awk cat date dd df echo env false grep head id ip kill ls mkdir mount nc nproc nslookup printf ps pwd rm seq sleep sort test touch true wc wget yes"  # noqa: E501


def missing(reason: str) -> None:
    """Skip the test, or fail it where everything must be tested."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must test this: {reason}")
    pytest.skip(reason)


class TestEngine:
    """One dockerd without a network of its own, and one registry on loopback.

    `prefix` is a command that starts dockerd in a network namespace, where it may have a bridge and rules of its own.
    Its files are in a folder of their own in `place`.
    """

    __test__ = False

    def __init__(self, prefix: Sequence[str] = (), place: str = "/tmp", options: Sequence[str] = ()) -> None:
        self._prefix, self._options = list(prefix), list(options)
        if os.geteuid() != 0:
            missing("a Docker Engine of the tests' own needs root")
        lacking = [name for name in ("dockerd", "docker-registry", "busybox") if shutil.which(name) is None]
        if lacking:
            missing(f"not installed: {', '.join(lacking)} (Debian: docker.io docker-registry busybox-static)")
        self.root = Path(tempfile.mkdtemp(prefix="cfab-engine-", dir=place))
        self.socket = str(self.root / "docker.sock")
        self.engine = Engine(self.socket)
        self.registry = f"127.0.0.1:{free_port()}"
        self._hooks = self.root / "bin"
        self._hooks.mkdir()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.add_gpu_hook()
        self.start_engine()
        self.import_image(TEST_IMAGE)

    def start_engine(self) -> None:
        """Start dockerd and wait until it answers."""
        alone = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false"]
        words = [
            *self._prefix, "dockerd", "--data-root", f"{self.root}/data", "--exec-root", f"{self.root}/exec",
            "-p", f"{self.root}/docker.pid", "-H", f"unix://{self.socket}", *([] if self._prefix else alone),
            *self._options,
        ]  # fmt: skip
        env = {**os.environ, "PATH": f"{self._hooks}:{os.environ['PATH']}"}
        self._start("dockerd", words, env)
        until = time.monotonic() + START_S
        while True:
            try:
                self.engine.call("GET", "/version")
                return
            except EngineError as exc:
                if time.monotonic() > until or self._processes["dockerd"].poll() is not None:
                    said = (self.root / "dockerd.log").read_text(errors="replace")[-800:]
                    self.close()
                    missing(f"dockerd does not start here ({exc}): {said}")
                time.sleep(0.05)

    def stop_engine(self) -> None:
        """Stop dockerd, and with it its containers."""
        self._stop("dockerd")

    def start_registry(self, htpasswd: str | None = None) -> None:
        """Start the registry, instead of one that runs, open or with users, and wait until it answers."""
        self._stop("registry")
        config = self.root / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.root}/registry}}}}\n"
            f"http: {{addr: '{self.registry}'}}\n"
        )
        if htpasswd is not None:
            (self.root / "htpasswd").write_text(htpasswd)
            with config.open("a") as file:
                file.write(f"auth: {{htpasswd: {{realm: tests, path: {self.root}/htpasswd}}}}\n")
        self._start("registry", ["docker-registry", "serve", str(config)], None)
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://{self.registry}/v2/", timeout=1).status_code in (200, 401):
                    return
            assert time.monotonic() < until, "the registry does not answer"
            time.sleep(0.05)

    def stop_registry(self) -> None:
        """Take the registry away."""
        self._stop("registry")

    def import_image(self, name: str, **files: str) -> None:
        """Make an image of busybox, with more files at its root."""
        self.docker("import", "-", name, stdin=self.archive(**files))

    @staticmethod
    def archive(**files: str) -> bytes:
        """A root file system with busybox and more files, as tar."""
        busybox = Path(shutil.which("busybox") or "").read_bytes()
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            _add(tar, "bin/busybox", busybox, 0o755)
            for applet in APPLETS.split():
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
            for path, text in files.items():
                _add(tar, path, text.encode(), 0o644)
        return archive.getvalue()

    def push(self, name: str, image: str = TEST_IMAGE) -> str:
        """Push an image into the registry under a name, forget it here, and return its digest."""
        full = f"{self.registry}/{name}"
        self.docker("tag", image, full)
        self.docker("push", full)
        digests = self.docker("inspect", "--format", '{{join .RepoDigests " "}}', full).split()
        (digest,) = [one.partition("@")[2] for one in digests if one.startswith(full.rpartition(":")[0] + "@")]
        self.docker("rmi", full)
        return digest

    def docker(self, *words: str, stdin: bytes | None = None) -> str:
        """Run Docker's own client, as an operator would."""
        client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
        done = subprocess.run(
            [client, "-H", f"unix://{self.socket}", *words], input=stdin, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    def add_gpu_hook(self) -> None:
        """A stand-in for NVIDIA's hook: Docker calls it for containers that were given GPUs."""
        hook = self._hooks / "nvidia-container-runtime-hook"
        hook.write_text(f"#!/bin/sh\ncat > {self.root}/gpu-hook.json\n")
        hook.chmod(0o755)

    def close(self) -> None:
        """End everything and remove it."""
        for name in list(self._processes):
            self._stop(name)
        subprocess.run(["umount", "-R", f"{self.root}/data"], capture_output=True, check=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def _start(self, name: str, words: list[str], env: dict[str, str] | None) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(data), mode
    tar.addfile(info, BytesIO(data))
