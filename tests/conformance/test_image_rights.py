"""Private images on a real engine and a registry that asks for a password: whoever may not pull one may not run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.here import Here
from tests.engine import TEST_IMAGE, TestEngine

HTPASSWD = "me:$2b$04$8qAlK5RQuzWuFHdsMsiqM.rbNi4B23kYwqvAuF.Ko5BQCZy4505yS\n"
Open = Callable[[str], Here]


@pytest.fixture
def worker(docker_engine: TestEngine, node_directory: Path) -> Iterator[Open]:
    """Makes keepers of the same engine, as of workers with a set of GPUs each."""
    made: list[Here] = []

    def open_one(name: str) -> Here:
        made.append(Here(node_directory / name, docker_engine.engine))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


@pytest.fixture
def private(docker_engine: TestEngine) -> Iterator[str]:
    """The name, with its digest, of an image that its registry gives only to those who sign in."""
    docker_engine.start_registry()
    docker_engine.import_image("cfab-secret:1", secret="x")
    digest = docker_engine.push("rights/tool:1", "cfab-secret:1")
    docker_engine.docker("rmi", "cfab-secret:1")
    docker_engine.stop_registry()
    docker_engine.start_registry(HTPASSWD)
    image = f"{docker_engine.registry}/rights/tool@{digest}"
    yield image
    docker_engine.stop_registry()
    docker_engine.docker("rmi", image)


def signed_in(image: str) -> dict[str, Any]:
    login = {"username": "me", "password": "only-for-tests", "serveraddress": image.partition("/")[0]}
    return {"credentials": login, "scope": "lab"}


def test_private_image_stays_private_where_two_workers_share_an_engine(
    worker: Open, docker_engine: TestEngine, private: str
) -> None:
    one, two = worker("one"), worker("two")
    assert one.run("a1", "true", image=private, pull="always", **signed_in(private))["exit_code"] == 0
    for number, keeper in enumerate((one, two)):
        for pull in ("always", "missing"):
            record = keeper.run(f"b{number}{pull}", "cat", "/secret", image=private, pull=pull)
            assert "no basic auth credentials" in str(record["spawn_error"])
    # A registry that does not answer has let nobody have it; whoever has shown a right here needs it no more.
    docker_engine.stop_registry()
    assert two.run("c2", "true", image=private, pull="always", **signed_in(private))["node_fault"] is not None
    assert one.run("c1", "true", image=private, pull="always", **signed_in(private))["exit_code"] == 0
    docker_engine.start_registry(HTPASSWD)
    assert two.run("d2", "true", image=private, pull="always", **signed_in(private))["exit_code"] == 0


def test_list_of_rights_that_was_lost_opens_nothing(worker: Open, private: str) -> None:
    keeper = worker("one")
    assert keeper.run("a1", "true", image=private, pull="always", **signed_in(private))["exit_code"] == 0
    (keeper.directory / "images.json.rights").write_text("{")
    again = worker("one")
    assert again.run("b1", "cat", "/secret", image=private, pull="always")["spawn_error"] is not None
    assert again.run("b2", "true", image=private, pull="always", **signed_in(private))["exit_code"] == 0


def test_operator_s_own_images_need_no_registry(worker: Open, docker_engine: TestEngine, private: str) -> None:
    keeper = worker("one")
    docker_engine.docker("tag", TEST_IMAGE, f"{docker_engine.registry}/rights/local:1")
    docker_engine.stop_registry()
    docker_engine.start_registry()
    docker_engine.docker("pull", private)
    docker_engine.docker("tag", private, "cfab-retagged:1")
    docker_engine.stop_registry()
    local = f"{docker_engine.registry}/rights/local:1"
    try:
        assert keeper.run("a1", "true", image=local, pull="missing")["exit_code"] == 0
        assert keeper.run("a2", "true", image="cfab-retagged:1", pull="missing")["exit_code"] == 0
        # What came from a registry is nobody's, unless this node pulls nothing: then it is the operator's.
        assert keeper.run("a3", "true", image=private, pull="missing")["node_fault"] is not None
        assert keeper.run("a4", "true", image=private, pull="never")["exit_code"] == 0
    finally:
        docker_engine.docker("rmi", local, "cfab-retagged:1")
