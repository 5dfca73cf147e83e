"""Images that came with a tenant's credentials are that tenant's, until the registry says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.containers.private import MOST, PrivateImages

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "private.json")


def test_only_those_who_were_allowed_may_have_a_private_image(path: str) -> None:
    images = PrivateImages(path)
    images.allow(ONE, "lab")
    assert images.barred((ONE,), "lab") is None
    assert images.barred((TWO, ONE), "other") == images.barred((ONE,), "") == ONE
    images.allow(ONE, "other")
    assert images.barred((ONE,), "other") is None and images.barred((ONE,), "lab") is None
    assert images.barred((TWO,), "") is None


def test_an_image_that_was_had_without_credentials_is_everybody_s(path: str) -> None:
    images = PrivateImages(path)
    images.allow(ONE, "lab")
    images.open(ONE)
    assert images.barred((ONE,), "") is None


def test_it_is_known_after_a_restart_and_a_torn_file_stops_nothing(path: str) -> None:
    PrivateImages(path).allow(ONE, "lab")
    assert PrivateImages(path).barred((ONE,), "other") == ONE
    Path(path).write_text('{"sha')
    assert PrivateImages(path).barred((ONE,), "other") is None


def test_what_is_here_or_new_is_never_forgotten(path: str) -> None:
    images = PrivateImages(path)
    images.allow(ONE, "lab")
    images._known |= {f"sha256:{n:064}": (0.0, ["lab"]) for n in range(MOST)}
    images.prune({TWO, f"sha256:{7:064}"})
    assert len(images._known) == 2
    assert images.barred((ONE,), "") and images.barred((f"sha256:{7:064}",), "")
