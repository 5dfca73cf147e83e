"""Public keys as cosign writes them (cosign.pub): ECDSA on P-256, in PEM. Reads them and checks signatures by them."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)


class BadKey(ValueError):
    """Not a public key that signatures can be checked by; the message says why."""


@lru_cache(maxsize=256)
def read_key(pem: str) -> ec.EllipticCurvePublicKey:
    """The one public key of a PEM text. Raises BadKey, also for private keys and keys of another kind."""
    if "PRIVATE" in pem:
        raise BadKey("is a private key, which nobody but its signer should have; give the public one (cosign.pub)")
    try:
        key = serialization.load_pem_public_key(pem.strip().encode())
    except Exception as exc:
        raise BadKey(f"is not a public key in PEM, as cosign writes it to cosign.pub: {exc}"[:300]) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise BadKey("must be an ECDSA key on the curve P-256, as `cosign generate-key-pair` makes it")
    return key


def read_keys(text: str) -> list[str]:
    """The PEM blocks of a text, one key each. Raises BadKey when there is none, or one that is no such key."""
    blocks = _BLOCK.findall(text)
    if not blocks:
        raise BadKey("holds no public key in PEM")
    for block in blocks:
        read_key(block)
    return blocks


def fingerprint(pem: str) -> str:
    """The SHA-256 of the key in DER, in hexadecimal: what tells keys apart at a glance."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(read_key(pem).public_bytes(serialization.Encoding.DER, form)).hexdigest()


def is_signed_by(pem: str, signature: bytes, payload: bytes) -> bool:
    """Whether `signature` (DER) over exactly `payload` was made with this key's private half."""
    try:
        read_key(pem).verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
