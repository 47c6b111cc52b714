"""Stateless randomness: every draw is a function of names and numbers, never of what was drawn before.

This makes a resumed run the same run (the idea is EDM2's, which reseeds from seed, rank and images seen).
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, for instance ("noise", seed, lo, hi, rank, images_seen)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
