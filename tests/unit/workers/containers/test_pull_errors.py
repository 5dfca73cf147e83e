"""What an engine says about an image is understood by its own words, never by the image's name."""

from __future__ import annotations

import pytest

from workers.containers.pull_errors import ImageRefused, ImageUnavailable, trouble
from workers.containers.reference import parse_reference

ZEROS = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        ("r.io/geofabrik/x:1", 404, "manifest for r.io/geofabrik/x:1 not found: manifest unknown"),
        ("acme/tls-demo", 404, "pull access denied for acme/tls-demo, repository does not exist"),
        ("tls", 404, "manifest for docker.io/library/tls:latest not found: manifest unknown"),
        ("eof", 404, "manifest for eof:latest not found: manifest unknown: manifest unknown"),
        (f"r.io/openai/ollama@{ZEROS}", 0, f"manifest for r.io/openai/ollama@{ZEROS} not found"),
        ("ghcr.io/acme/eof:tls", 0, 'Head "https://ghcr.io/v2/acme/eof/manifests/tls": unauthorized'),
        ("tls.example:5000/x:1", 500, "error from registry tls.example:5000: name unknown"),
    ],
)
def test_missing_image_is_refused(image: str, status: int, message: str) -> None:
    found = trouble(parse_reference(image), image, status, message)
    assert isinstance(found, ImageRefused)
    assert str(found) == f"image {image} cannot be pulled: {message}"


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        ("r.io/x:1", 500, 'Get "https://r.io/v2/": dial tcp: lookup r.io on 10.0.0.2:53: no such host'),
        ("r.io/x:1", 404, 'Get "https://r.io/v2/": net/http: TLS handshake timeout'),
        ("r.io/unsupported/x:1", 500, 'Get "https://r.io/v2/unsupported/x/manifests/1": connection broken'),
        ("r.io/x:1", 500, "failed to register layer: write /x: no space left on device"),
        ("r.io/x:1", 0, "unexpected EOF"),
        ("o", 0, 'Get "https://registry-1.docker.io/v2/": read tcp 10.0.0.1:1: i/o timeout, not found'),
        ("r.io/x:1", 429, "toomanyrequests: not found: You have reached your pull rate limit"),
        ("r.io/x:1", 500, "mkdir /var/lib/docker/tmp: permission denied"),
    ],
)
def test_registry_or_host_in_trouble_is_no_refusal(image: str, status: int, message: str) -> None:
    assert isinstance(trouble(parse_reference(image), image, status, message), ImageUnavailable)
