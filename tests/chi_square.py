"""Whether counts are as even as chance makes them."""

import math

import numpy as np


def check_uniform(counts):
    """Chi-square with `d` degrees of freedom leaves these bounds with a probability of e^-20 each.

    Laurent and Massart 2000, "Adaptive estimation of a quadratic functional", lemma 1.
    """
    counts = np.asarray(counts, float).ravel()
    expected, d, t = counts.mean(), counts.size - 1, 20.0
    statistic = ((counts - expected) ** 2).sum() / expected
    assert d - 2 * math.sqrt(d * t) <= statistic <= d + 2 * math.sqrt(d * t) + 2 * t
