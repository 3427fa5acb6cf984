"""Encryption per user: random keys, themselves encrypted under one that is derived from the tenant's secret.

The database alone reads nothing: the tenant's secret is a file beside it. With a user's key gone, what was
written under it stays unreadable in every old copy of the payload.
"""

from __future__ import annotations

import secrets
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qiance.ledger.records import LedgerError

_KEY_BYTES, _NONCE_BYTES = 32, 12


def seal(key: bytes, plain: bytes, about: bytes) -> bytes:
    """Nonce and AES-256-GCM ciphertext of `plain`; `about` must be the same to open it."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """The inverse of `seal`; LedgerError if anything was changed."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
    except (InvalidTag, ValueError):
        raise LedgerError(
            "ledger: an encrypted value does not fit its row: the database was changed by other hands, or "
            "its key file was; restore both from one backup"
        ) from None


class Sealer:
    """The keys of one tenant's users."""

    def __init__(self, secret: bytes, tenant: str) -> None:
        self._secret, self._tenant = secret, tenant.encode()

    @cached_property
    def _wrapping(self) -> bytes:
        return self._derive(b"qiance user keys")

    @cached_property
    def subjects(self) -> bytes:
        """Key of the user ids that an unfinished erasure keeps."""
        return self._derive(b"qiance erasure subjects")

    def new_key(self, pseudonym: str) -> bytes:
        """A random user key, wrapped."""
        return seal(self._wrapping, secrets.token_bytes(_KEY_BYTES), self._about(pseudonym))

    def unwrap(self, pseudonym: str, wrapped: bytes) -> bytes:
        """The user's key."""
        return unseal(self._wrapping, wrapped, self._about(pseudonym))

    def _derive(self, purpose: bytes) -> bytes:
        info = purpose + b"\x00" + self._tenant
        return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=info).derive(self._secret)

    def _about(self, pseudonym: str) -> bytes:
        return self._tenant + b"\x00" + pseudonym.encode()
