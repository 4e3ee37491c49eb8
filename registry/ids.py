"""Ids: 10 characters of Crockford base32 (no i, l, o, u) that sort by creation time.

36 bits of time in units of 1/32 s since 2020 (68 years), 14 random bits. Within a process ids only grow, also
when the clock is set back. Two processes can meet on one id in the same 1/32 s with a chance of 1 in 16,384;
the catalog's primary key refuses the second, and the catalog tries again.
"""

import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH = 1_577_836_800  # 2020-01-01 UTC
_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A fresh id, greater than every earlier one of this process."""
    global _last
    with _lock:
        tick = int((time.time() - _EPOCH) * 32)
        _last = max(tick << 14 | secrets.randbits(14), _last + 1)
        value = _last
    return "".join(ALPHABET[value >> shift & 31] for shift in range(45, -1, -5))
