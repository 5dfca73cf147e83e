"""Names of images in full, as Docker means them; what the keeper takes for one, and what the core does, is the same."""

from __future__ import annotations

import pytest

from app.domain.image_name import BadImageName, is_place, parse_image_name
from workers.containers.reference import BadReference, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest"),
    [
        ("busybox", "docker.io/library/busybox", "latest", None),
        ("team/tool:24", "docker.io/team/tool", "24", None),
        ("docker.io/busybox", "docker.io/library/busybox", "latest", None),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "latest", None),
        ("localhost/tool", "localhost/tool", "latest", None),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c", "x", None),
        ("[::1]:5000/x:1", "[::1]:5000/x", "1", None),
        (f"team/tool@{DIGEST}", "docker.io/team/tool", None, DIGEST),
        (f"ghcr.io/team/tool:24@{DIGEST}", "ghcr.io/team/tool", "24", DIGEST),
    ],
)
def test_names_are_read_in_full(text: str, repository: str, tag: str | None, digest: str | None) -> None:
    name = parse_image_name(text)
    assert (name.repository, name.tag, name.digest) == (repository, tag, digest)
    parse_reference(text)


@pytest.mark.parametrize(
    "text",
    ["", "Upper", "a:b:c", "a@b", f"a@{DIGEST}0", "a b", "a/../b", "-a", "a/", "/a", "a:" + "t" * 129, "http://a/b",
     "a.b:port/c", "a" * 513, "a\n", "a?b=c", "ä", "sha256:" + "a" * 64, "sha256"],
)  # fmt: skip
def test_what_is_no_name_is_refused_by_core_and_keeper(text: str) -> None:
    with pytest.raises(BadImageName, match="image"):
        parse_image_name(text)
    with pytest.raises(BadReference, match="image"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ("ghcr.io", True),
        ("ghcr.io/acme", True),
        ("ghcr.io/acme/tool", True),
        ("ghcr.io/ac", False),
        ("ghcr.io/acme/tool/more", False),
        ("ghcr.io:443/acme", False),
    ],
)
def test_a_place_holds_what_lies_below_it_and_no_more(place: str, inside: bool) -> None:
    assert is_place(place)
    assert parse_image_name("ghcr.io/acme/tool:1").lies_in(place) is inside


@pytest.mark.parametrize("text", ["", "acme", "acme/tool", "ghcr.io/Acme", "ghcr.io/", "ghcr.io//a", "*", "a b.c/d"])
def test_what_is_no_place_is_refused(text: str) -> None:
    assert not is_place(text)
