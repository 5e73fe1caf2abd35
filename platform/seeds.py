"""Every random draw of a run comes from one seed through named children."""

from __future__ import annotations

import zlib

import numpy as np


def child_seed(seed: int, *names: str | int) -> int:
    """A 31-bit seed that depends on the run's seed and on the names alone."""
    parts = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1)[0] >> 1)


def child_rng(seed: int, *names: str | int) -> np.random.Generator:
    """A generator for one named purpose."""
    return np.random.default_rng(child_seed(seed, *names))
