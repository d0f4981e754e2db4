"""What many tests need: waiting for a fact, with an end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(fact: Callable[[], object], timeout: float = 5.0, what: str = "") -> None:
    """Return as soon as the fact holds; fail when it does not hold within the timeout (seconds)."""
    deadline = time.monotonic() + timeout
    while not fact():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or fact}")
        time.sleep(0.002)
