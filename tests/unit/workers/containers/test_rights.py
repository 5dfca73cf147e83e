"""Images on a host are for those who have shown the registry a right to them, and unknown ones for nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.containers.rights import EVERYBODY, Rights

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "rights.json")


def test_only_those_who_have_shown_a_right_have_it(path: str) -> None:
    rights = Rights(path)
    assert not rights.are_shown((ONE,), "lab") and not rights.are_shown((ONE,), EVERYBODY)
    assert not rights.are_private((ONE,))
    rights.allow(ONE, "lab")
    assert rights.are_shown((TWO, ONE), "lab") and rights.are_private((TWO, ONE))
    assert not rights.are_shown((TWO, ONE), "other") and not rights.are_shown((ONE,), EVERYBODY)
    rights.allow(ONE, "other")
    assert rights.are_shown((ONE,), "other") and rights.are_shown((ONE,), "lab")


def test_an_image_that_was_had_without_credentials_is_everybody_s(path: str) -> None:
    rights = Rights(path)
    rights.allow(ONE, "lab")
    rights.allow(ONE, EVERYBODY)
    assert rights.are_shown((ONE,), EVERYBODY) and rights.are_shown((ONE,), "other")
    assert not rights.are_private((ONE,))


def test_rights_outlive_a_restart_and_a_torn_list_gives_none(path: str) -> None:
    Rights(path).allow(ONE, "lab")
    assert Rights(path).are_shown((ONE,), "lab")
    for torn in ('{"sha', "[]", '{"a": 1}'):
        Path(path).write_text(torn)
        assert not Rights(path).are_shown((ONE,), "lab")


def test_images_that_are_gone_are_forgotten(path: str) -> None:
    rights = Rights(path)
    rights.allow(ONE, "lab")
    rights.allow(TWO, "lab")
    rights.prune({TWO})
    for known in (rights, Rights(path)):
        assert not known.are_shown((ONE,), "lab") and known.are_shown((TWO,), "lab")
