"""Hashes that are the same on every machine: of a file's content, a text, a case, and seeds made from them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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


@dataclass(frozen=True)
class CaseHashes:
    """Cases that can be recognised and not read.

    scrypt (RFC 7914) makes each guess cost some 10 ms. That hides no short number: who knows how a hospital counts its
    patients can try all of them.

    Attributes:
        salt: Hexadecimal digits.
        splits: The split, train or val, of each case, by its hash.
    """

    salt: str
    splits: Mapping[str, str]

    @classmethod
    def of(cls, split_of: Mapping[str, str], salt: str) -> "CaseHashes":
        """Hash cases.

        Args:
            split_of: The split of each case.
            salt: Any text that no other data set has.
        """
        salt = stable_hash(salt)[:32]
        cases = sorted(split_of)
        return cls(salt, {one: split_of[case] for case, one in zip(cases, _case_hashes(cases, salt), strict=True)})

    def find(self, cases: Iterable[str]) -> dict[str, str]:
        """Return the split of those cases that are among these."""
        names = sorted(cases)
        hashes = _case_hashes(names, self.salt)
        return {name: self.splits[one] for name, one in zip(names, hashes, strict=True) if one in self.splits}


def _case_hashes(cases: Sequence[str], salt: str) -> list[str]:
    def hashed(case: str) -> str:
        content = case.encode("utf-8", "surrogateescape")
        return hashlib.scrypt(content, salt=bytes.fromhex(salt), n=2**12, r=8, p=1, dklen=CONTENT_BYTES).hex()

    with ThreadPoolExecutor() as pool:  # scrypt lets other threads run
        return list(pool.map(hashed, cases))
