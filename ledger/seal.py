"""Opaque tokens: whoever holds one can give it back, and can neither read nor change it to effect.

A token says where a caller's reading goes on. Its seal is an HMAC under a key that is made once
with the books and never leaves them and their readers, so a token holds in every process, and
after a restart.
"""

import base64
import hmac

SEAL_SIZE = 16
TOKEN_LENGTH_MAX = 1024


class BrokenSeal(Exception):
    """The text was not sealed by these books for this purpose."""


class Seal:
    """Seals payloads under ``key``, at least 32 random bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def close(self, purpose: bytes, payload: bytes) -> str:
        """The token of ``payload``; it opens for the same ``purpose`` only."""
        sealed = self._digest(purpose, payload) + payload
        return base64.urlsafe_b64encode(sealed).decode()

    def open(self, purpose: bytes, token: str) -> bytes:
        """The payload that ``close`` was given; raises ``BrokenSeal``."""
        try:
            sealed = base64.urlsafe_b64decode(token) if len(token) <= TOKEN_LENGTH_MAX else b""
        except ValueError:
            raise BrokenSeal from None
        payload = sealed[SEAL_SIZE:]
        # The text too, because base64 lets one text be spelled in several ways.
        if not hmac.compare_digest(self.close(purpose, payload).encode(), token.encode()):
            raise BrokenSeal
        return payload

    def _digest(self, purpose: bytes, payload: bytes) -> bytes:
        # The length keeps apart what belongs to the purpose and what to the payload.
        text = len(purpose).to_bytes(4, "big") + purpose + payload
        return hmac.digest(self._key, text, "sha256")[:SEAL_SIZE]
