"""Intervals and tests for reports over tasks: Student's t and the sign test."""

import functools
import math

import numpy as np
import tensorflow as tf


def mean_and_margin(values, level=0.95):
    """The mean of independent values and half the width of its interval by Student's t.

    ```
    margin = t * standard deviation / sqrt(n),    t the (1 + level) / 2 quantile with n - 1 degrees of freedom
    ```

    Args:
        values: `(n,)`, all finite.
        level: how often such an interval holds the true mean, in (0, 1).

    Returns:
        `(mean, margin)`, floats: NaN for no value, and an infinite margin for one.

    References:
        - Student 1908, "The probable error of a mean", doi:10.1093/biomet/6.1.1
    """
    values = np.asarray(values, "float64")
    count = len(values)
    if count < 2:
        return (float(values[0]), math.inf) if count else (math.nan, math.nan)
    deviation = float(values.std(ddof=1))
    return float(values.mean()), t_quantile((1 + level) / 2, count - 1) * deviation / math.sqrt(count)


@functools.lru_cache
def t_quantile(probability, degrees):
    """What Student's t exceeds with probability `1 - probability`.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > 1 - probability:
        low, high = high, 2 * high
    for _ in range(60):  # to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > 1 - probability else (low, middle)
    return high


def t_tail(t, degrees):
    """The probability that Student's t exceeds `t`, at least 0: half of `I_x(degrees / 2, 1 / 2)`."""
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2


def sign_test(differences):
    """Whether differences are as often above as below 0: the two-sided probability of a split as uneven or more.

    Args:
        differences: `(n,)`; those that are 0 count for neither side.

    Returns:
        `(above, below, probability)`: two integers and a float in (0, 1].

    References:
        - Dixon and Mood 1946, "The statistical sign test", doi:10.1080/01621459.1946.10501898
    """
    differences = np.asarray(differences)
    above, below = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    fewer, trials = min(above, below), above + below
    if trials == 0:
        return above, below, 1.0
    # P(at most `fewer` of `trials` heads) is a regularised incomplete beta function.
    return above, below, min(1.0, 2 * _incomplete_beta(trials - fewer, fewer + 1, 0.5))


def _incomplete_beta(a, b, x):
    with tf.device("CPU:0"):
        return float(tf.math.betainc(*(tf.constant(float(value), tf.float64) for value in (a, b, x))))
