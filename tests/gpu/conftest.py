"""Everything here needs NVML and a GPU; without them each test is skipped and says what is missing."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories import Fabric, make_fabric
from tests.integration.agent.conftest import Site


def missing() -> str:
    """Why GPU tests cannot run here; empty when they can."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as exc:
        return f"needs an NVIDIA GPU with its driver: {exc}"
    return "" if count else "needs an NVIDIA GPU: the driver lists none"


MISSING = missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies here, and skips it where there is no GPU."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture
def smi() -> list[list[str]]:
    """What `nvidia-smi`, a witness of its own, says of each GPU: index, UUID, name, memory in MiB."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("needs nvidia-smi")
    asked = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines]


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


@pytest.fixture
def site(fabric: Fabric) -> Iterator[Site]:
    path = Path(tempfile.mkdtemp(prefix="cfab-gpu-", dir="/tmp"))
    path.chmod(0o711)
    site = Site(fabric, path)
    yield site
    site.close()
    shutil.rmtree(path, ignore_errors=True)
