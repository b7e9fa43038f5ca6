"""Intervals and paired tests over users, vectorised over models and metrics.

Every function reads per-user values, one column a model and metric: a metric is the
mean of its column, so a resample of the users is a vector of weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHUNK = 1 << 22  # elements of a block of weights or signs


def _blocks(resamples: int, users: int) -> Iterator[int]:
    rows = max(1, CHUNK // max(1, users))
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def bootstrap(values: Array, resamples: int = 1000, seed: int = 0) -> Array:
    r"""Means of all columns over users that are drawn with replacement.

    All columns see the same draws, hence differences of columns are paired.

    Args:
        values: Values of every user, of shape :math:`[n, c]`.
        resamples: Number of resamples :math:`R`.
        seed: Seed of the draws.

    Returns:
        The means, :math:`[R, c]`.
    """
    n = len(values)
    generator = np.random.default_rng(seed)
    means = []
    for rows in _blocks(resamples, n):
        drawn = generator.integers(n, size=(rows, n), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * n)[:, None]
        count = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(count.astype(np.float64) @ values / n)
    return np.concatenate(means)


def percentile_interval(draws: Array, level: float = 0.95) -> tuple[Array, Array]:
    """The percentile interval of bootstrap draws of shape ``[R, ...]``."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def paired_permutation(
    difference: Array, resamples: int = 10_000, seed: int = 0
) -> Array:
    r"""Two-sided p-values of paired differences under random signs.

    If both models were exchangeable, each user's difference would be as likely with the
    other sign. The p-value is the share of sign vectors whose mean is at least as far
    from zero as the observed one. All :math:`2^n` are enumerated if that is no more
    than ``resamples``; otherwise it is :math:`(1 + b) / (1 + R)` for :math:`b` of
    :math:`R` random ones, which is never zero and keeps its level
    (`Phipson and Smyth, 2010 <https://doi.org/10.2202/1544-6115.1585>`_).

    Args:
        difference: Differences of every user, of shape :math:`[n, c]`.
        resamples: Number of random sign vectors :math:`R`.
        seed: Seed of the signs.

    Returns:
        The p-values, :math:`[c]`.
    """
    difference = difference[difference.any(axis=1)]  # a zero has no sign
    n, columns = difference.shape
    total = difference.sum(axis=0)
    # Sums of the same numbers in another order differ by rounding alone.
    bound = np.abs(total) - 1e-9 * np.abs(difference).sum(axis=0)
    exact = n < 63 and 2**n <= resamples
    generator = np.random.default_rng(seed)
    reached, done = np.zeros(columns), 0
    for rows in _blocks(2**n if exact else resamples, n):
        if exact:
            code = np.arange(done, done + rows)[:, None] >> np.arange(n)
            positive = (code & 1).astype(np.float64)
        else:
            packed = generator.integers(256, size=(rows, -(-n // 8)), dtype=np.uint8)
            positive = np.unpackbits(packed, axis=1, count=n).astype(np.float64)
        signed = 2 * (positive @ difference) - total
        reached += (np.abs(signed) >= bound).sum(axis=0)
        done += rows
    return reached / done if exact else (1 + reached) / (1 + done)


def holm(p: Array) -> Array:
    r"""P-values that control the family-wise error, by Holm's step-down.

    .. math::
        \tilde p_{(i)} = \max_{j \leq i} \min(1, (m - j + 1)\, p_{(j)})
    """
    order = np.argsort(p, kind='stable')
    factor = len(p) - np.arange(len(p))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factor * p[order]))
    return adjusted
