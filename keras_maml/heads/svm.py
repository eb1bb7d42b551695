"""Output layers that start from a support vector machine, and its solver.

Symbols: S supports with features `F: (S, features)`, one-hot labels `Y: (S, ways)`, bounds `c_n = C weight_n`. The dual
of Crammer and Singer's machine, in variables `P: (S, ways)` whose rows are distributions over the classes:

```
min over P    1/2 |F' A|^2 - <Y, A>    with A = c (Y - P),    P >= 0,    rows of P sum to 1
W = F' A
```

An interior point method follows the minimum of the same with `mu` times the logarithms of P added as barriers, while mu
goes to 0. There `Z = gradient - nu 1'` and `P Z = mu`, for multipliers nu of the sums. A Newton step solves

```
(Q + D_k) dP_k = r_k + dnu    for each class k,    sum_k dP_k = 0,    Q = c F F' c,    D_k = diag(Z_k / P_k)
```

by the inverses `H_k` of `Q + D_k` and `dnu = -(sum_k H_k)^-1 sum_k H_k r_k`: ways + 1 factorisations of S x S matrices
in place of one of (S ways) x (S ways). Ways not taken: projected gradients (hundreds of iterations where features are
alike, as those after a ReLU are), active sets (a number of iterations that depends on the data, which neither
`vectorized_map` nor XLA runs well).
"""

import keras
import tensorflow as tf

from keras_maml.arguments import check_flag, check_positive
from keras_maml.heads.base import ComputedHead

RIDGE = 1e-8  # on Q, relative to its mean diagonal: P is unique then, and so is its derivative
CLOSE = 1e-11  # mu relative to the gradient, where the path ends: below 1e-14 factorisations fail by rounding
BACK = 0.99  # of the way to the bounds


@keras.saving.register_keras_serializable("keras_maml")
class SVMHead(ComputedHead):
    """The output layer starts from a linear support vector machine on the support features, its inputs.

    ```
    W = argmin 1/2 |W|^2 + C sum_n weight_n xi_n,    f_n . (w_y_n - w_k) >= 1 - xi_n for all classes k but y_n, xi >= 0
    logits = scale f W
    ```

    `Algorithm(..., steps=0, start=SVMHead())` is MetaOptNet. The machine is that of Crammer and Singer, without biases.
    Its dual is solved by an interior point method of a fixed number of iterations in float64, whatever the features
    are: single precision ends at 1e-4 of the solution, too far to know which bounds hold.

    The outer gradient is that of the solution, not of the iterations: the optimality conditions are differentiated,
    which takes one more linear solve. Where a variable is at its bound it stays there; near a change of that the
    derivative has a kink, as that of a ReLU has.

    Cost: each iteration factorises `ways + 1` matrices, supports x supports. With its gradient, 15 iterations take 1 ms
    a task for 5 ways with 1 shot, 2 ms with 5 shots, 4 ms for 20 ways with 1 shot, and 130 ms with 5 shots, on a core.

    A class without supports takes no part in the machine, has weights of 0 and the lowest bias, see `PrototypeHead`.
    The output layer must be a `Dense` with a bias.

    Args:
        C: price of a violated margin, positive; compare its inverse with the squared length of the features.
        scale: where the scale of the logits starts, positive. It is meta-learned, as its logarithm. The machine aims at
            logits 1 apart, which a softmax takes for almost no difference.
        learned: whether the scale is meta-learned.
        iterations: of the interior point method, at least 1. Fewer than 15 may end before the solution.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Lee et al. 2019, "Meta-learning with differentiable convex optimization", arXiv:1904.03758
        - the machine: Crammer and Singer 2001, "On the algorithmic implementation of multiclass kernel-based vector
          machines", Journal of Machine Learning Research 2
        - the steps: Mehrotra 1992, "On the implementation of a primal-dual interior point method", SIAM Journal on
          Optimization 2
    """

    vectorizes = False  # XLA makes the iterations three times as long, and compiles them for a minute

    def __init__(self, C=0.1, scale=10.0, learned=True, iterations=15, **kwargs):
        super().__init__(**kwargs)
        check_positive("C", C)
        check_positive("scale", scale)
        check_flag("learned", learned)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"`iterations` must be an integer of at least 1. Received: iterations={iterations!r}.")
        self.C = C
        self.scale = scale
        self.learned = learned
        self.iterations = iterations
        self.log_scale = self.log_weight("scale", scale) if learned else None

    def compute(self, features, y, weight):
        kernel = support_vector_machine(
            *(tf.cast(t, tf.float64) for t in (features, y, self.C * weight)), iterations=self.iterations
        )
        kernel = self.positive(self.log_scale, self.scale, features.dtype) * tf.cast(kernel, features.dtype)
        return kernel, tf.zeros([], features.dtype)

    def get_config(self):
        settings = ("C", "scale", "learned", "iterations")
        return {**super().get_config(), **{name: getattr(self, name) for name in settings}}


def support_vector_machine(features, y, bounds, iterations):
    """The weights of Crammer and Singer's machine, `(features, ways)`.

    Args:
        features: `(S, features)`, float64; S may be dynamic.
        y: one-hot labels, `(S, ways)`.
        bounds: `(S,)`, `C weight` of each support; a support of 0 has no influence.
        iterations: of the solver.
    """
    scaled = bounds[:, tf.newaxis] * features
    gram = tf.matmul(scaled, scaled, transpose_b=True)
    size = tf.shape(gram)[0]
    gram += RIDGE * tf.linalg.trace(gram) / tf.cast(size, gram.dtype) * tf.eye(size, dtype=gram.dtype)
    finite = tf.reduce_all(tf.math.is_finite(gram))  # a factorisation would stop the step at a NaN
    p = dual_solution(tf.where(finite, gram, tf.eye(size, dtype=gram.dtype)), y, bounds, iterations)
    kernel = tf.matmul(scaled, y - p, transpose_a=True)
    return tf.where(finite, kernel, tf.constant(float("nan"), kernel.dtype))


def dual_solution(gram, y, bounds, iterations):
    """The minimum P of `1/2 <Y - P, Q (Y - P)> - <c Y, Y - P>` over distributions, differentiable in Q.

    The derivative of the conditions `gradient(P, Q) = nu 1' + mu / P` and of the sums is one more Newton step, with
    factors that are constants: `dP = -step(dQ (P - Y))`. It is right to first order only, all that an outer gradient
    takes of a start.

    Args:
        gram: Q, `(S, S)`, positive definite.
        y: Y, one-hot, `(S, ways)`.
        bounds: c, `(S,)`.
        iterations: number of Newton steps.

    Returns:
        P, `(S, ways)`; 0 for classes without supports.
    """
    fixed = _Dual(tf.stop_gradient(gram), y, bounds)
    p, z = fixed.start()
    _, p, z = tf.while_loop(
        lambda index, *_: index < iterations,
        lambda index, p, z: (index + 1, *fixed.advance(p, z)),
        (tf.constant(0), p, z),
        parallel_iterations=1,
        maximum_iterations=iterations,
    )
    p, z = tf.stop_gradient(p), tf.stop_gradient(z)
    residual = tf.matmul(gram, p - y)
    return p - fixed.newton(p, z)(residual - tf.stop_gradient(residual))


class _Dual:
    """The problem of `dual_solution` and its Newton steps."""

    def __init__(self, gram, y, bounds):
        self.gram = gram
        self.y = y
        self.pull = bounds[:, tf.newaxis] * y
        seen = tf.reduce_max(self.pull, 0) > 0
        # Of no support at all any machine will do, but for one of NaN, whose gradient is NaN too.
        self.seen = tf.cast(seen | ~tf.reduce_any(seen), gram.dtype)  # (ways,)
        self.count = tf.reduce_sum(self.seen) * tf.cast(tf.shape(y)[0], gram.dtype)
        gradient = self.gradient(self.uniform())
        span = tf.reduce_max(tf.abs(gradient) * self.seen)
        self.span = tf.where(span > 0, span, 1)

    def uniform(self):
        return tf.zeros_like(self.y) + self.seen / tf.reduce_sum(self.seen)

    def gradient(self, p):
        return tf.matmul(self.gram, p - self.y) + self.pull

    def start(self):
        """A point inside all bounds at which the gradient is `nu 1' + Z`; it stays so, as steps are along that."""
        p = self.uniform()
        gradient = self.gradient(p)
        lowest = tf.reduce_min(tf.where(self.seen > 0, gradient, self.span), 1, keepdims=True)
        return p, self.seen * (gradient - lowest + self.span)

    def newton(self, p, z):
        """The function `r -> dP` of the module's docstring."""
        absent = 1 - self.seen
        diagonal = tf.transpose(z / (p + absent) + absent)
        identity = tf.eye(tf.shape(p)[0], dtype=p.dtype)
        factors = tf.linalg.cholesky(self.gram + tf.linalg.diag(diagonal))
        inverses = tf.linalg.cholesky_solve(factors, identity + tf.zeros_like(factors))
        inverses *= self.seen[:, tf.newaxis, tf.newaxis]
        total = tf.linalg.cholesky(tf.reduce_sum(inverses, 0))

        def times_inverses(r):
            return tf.transpose(tf.linalg.matvec(inverses, tf.transpose(r)))

        def solve(r):
            moved = tf.reduce_sum(times_inverses(r), 1, keepdims=True)
            return times_inverses(r - tf.linalg.cholesky_solve(total, moved))

        return solve

    def advance(self, p, z):
        """One step towards the solution: a straight one shows how far mu can fall, a second one aims there."""
        inside = p + 1 - self.seen
        mu = tf.reduce_sum(p * z) / self.count
        solve = self.newton(p, z)
        dp = solve(-z)
        dz = -z - z * dp / inside
        length = _length(p, dp, z, dz)
        ahead = tf.reduce_sum((p + length * dp) * (z + length * dz)) / self.count
        aim = mu * (ahead / mu) ** 3 - dp * dz
        dp = solve(aim / inside - z)
        dz = self.seen * ((aim - z * dp) / inside - z)
        length = _length(p, dp, z, dz, BACK)
        # Not a length of 0: past the end of the path a step may be NaN.
        goes_on = (mu > CLOSE * self.span) & tf.math.is_finite(length) & tf.reduce_all(tf.math.is_finite(dp + dz))
        return tf.where(goes_on, p + length * dp, p), tf.where(goes_on, z + length * dz, z)


def _length(p, dp, z, dz, share=1.0):
    """How far to go, at most 1, for P and Z to stay at least 0."""
    both, steps = tf.stack([p, z]), tf.stack([dp, dz])
    limits = tf.where(steps < 0, -both / tf.where(steps < 0, steps, -1), float("inf"))
    return tf.minimum(tf.ones([], p.dtype), share * tf.reduce_min(limits))
