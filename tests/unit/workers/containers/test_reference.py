"""Names of images are read as Docker reads them, and what is none is refused before anything is asked of a registry."""

from __future__ import annotations

import pytest

from workers.containers.reference import BadReference, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "name"),
    [
        ("busybox", "docker.io", "busybox:latest"),
        ("team/tool:24", "docker.io", "team/tool:24"),
        ("localhost/tool", "localhost", "localhost/tool:latest"),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000", "127.0.0.1:5000/a/b/c:x"),
        ("reg.example.org/a_b/c-d.e", "reg.example.org", "reg.example.org/a_b/c-d.e:latest"),
        ("[::1]:5000/x:1", "[::1]:5000", "[::1]:5000/x:1"),
        (f"team/tool@{DIGEST}", "docker.io", f"team/tool@{DIGEST}"),
        (f"team/tool:24@{DIGEST}", "docker.io", f"team/tool@{DIGEST}"),
    ],
)
def test_names_are_read(text: str, host: str, name: str) -> None:
    reference = parse_reference(text)
    assert (reference.host, reference.name) == (host, name)
    assert reference.pinned(DIGEST) == f"{reference.repository}@{DIGEST}"


@pytest.mark.parametrize(
    "text",
    ["", "Upper", "a:b:c", "a@b", f"a@{DIGEST}0", "a b", "a/../b", "-a", "a/", "/a", "a:" + "t" * 129, "http://a/b",
     "a.b:port/c", "a" * 513, "a\n", "a?b=c", "ä"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadReference, match="image"):
        parse_reference(text)
