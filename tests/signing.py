"""Signs images as `cosign sign --key` does, and tampers with registries as an attacker with their disk could."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Signer:
    """A key pair, and what can be signed with it."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        self.pem = self._private.public_key().public_bytes(encoding, form).decode()

    def signature(self, payload: bytes) -> str:
        """Over exactly these bytes, as the annotation holds it."""
        return base64.b64encode(self._private.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()

    def sign(self, registry: Shelf, repository: str, digest: str, identity: str | None = None, **claims: Any) -> str:
        """Stores a signature of `digest` in `repository`; claims replace cosign's. The payload's digest."""
        payload = statement(digest, identity or f"{registry.address}/{repository}", **claims)
        return registry.put_signature(repository, digest, payload, self.signature(payload))


def statement(digest: str, identity: str, kind: str = "cosign container image signature") -> bytes:
    """The payload that cosign signs."""
    image = {"docker-manifest-digest": digest}
    critical = {"identity": {"docker-reference": identity}, "image": image, "type": kind}
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


class Shelf:
    """A registry as somebody who may push to it sees it, and (`root`) somebody who sits on its disk."""

    def __init__(self, address: str, root: Path, auth: tuple[str, str] | None = None) -> None:
        self.address = address
        self._root = root
        self._auth = auth

    def put_signature(self, repository: str, digest: str, payload: bytes, signature: str) -> str:
        """Adds a layer to the signature image of `digest`; the payload's digest."""
        tag = f"{digest.replace(':', '-')}.sig"
        stored = self.put_blob(repository, payload)
        layer = {
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "size": len(payload),
            "digest": stored,
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }
        found = self._ask("GET", f"{repository}/manifests/{tag}", headers={"Accept": MANIFEST})
        layers = found.json()["layers"] if found.status_code == 200 else []
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {**config, "digest": self.put_blob(repository, b"{}")},
            "layers": [*layers, layer],
        }
        self.put_manifest(repository, tag, json.dumps(manifest).encode())
        return stored

    def put_blob(self, repository: str, content: bytes) -> str:
        """Stores a blob; its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begun = self._ask("POST", f"{repository}/blobs/uploads/")
        where = begun.headers["Location"]
        done = requests.put(
            where, params={"digest": digest}, data=content, timeout=30, auth=self._auth,
            headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip
        assert done.status_code == 201, done.text
        return digest

    def put_manifest(self, repository: str, tag: str, content: bytes) -> None:
        """Stores a manifest under a tag."""
        done = self._ask("PUT", f"{repository}/manifests/{tag}", data=content, headers={"Content-Type": MANIFEST})
        assert done.status_code == 201, done.text

    def manifest(self, repository: str, reference: str) -> bytes:
        """A manifest's bytes."""
        accept = f"{MANIFEST}, application/vnd.docker.distribution.manifest.v2+json"
        found = self._ask("GET", f"{repository}/manifests/{reference}", headers={"Accept": accept})
        assert found.status_code == 200, found.text
        return found.content

    def tamper(self, digest: str, content: bytes) -> None:
        """Replaces what lies on the registry's disk under a digest."""
        name = digest.removeprefix("sha256:")
        (data,) = self._root.glob(f"**/blobs/sha256/{name[:2]}/{name}/data")
        data.write_bytes(content)

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, f"http://{self.address}/v2/{path}", timeout=30, auth=self._auth, **options)
