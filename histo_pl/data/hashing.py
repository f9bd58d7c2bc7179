"""Hashes that are the same on every machine: of a file's content, of a text, and seeds made from them."""

import hashlib

CONTENT_BYTES = 8  # of a hash: two of a million different tiles share one with a probability of 3e-8


def content_hash(content: bytes) -> str:
    """Return 16 hexadecimal digits that identify a file's content."""
    return hashlib.blake2b(content, digest_size=CONTENT_BYTES).hexdigest()


def stable_hash(text: str) -> str:
    """Return 64 hexadecimal digits that a text has on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def stable_seed(seed: int, purpose: str, number: int) -> int:
    """Mix a run's seed with a purpose and a counter into an independent seed in [0, 2**63)."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
