"""JAX: a jitted `vmap` over tasks of `value_and_grad`, with Optax's Adam."""

import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks import nets
from benchmarks.implementations import Implementation
from benchmarks.rows import OUTER_LEARNING_RATE


def dense(weights, name, x):
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def normalise(weights, name, x, axes):
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + nets.EPSILON)
    return x * weights[f"{name}/scale"] + weights[f"{name}/offset"]


def mlp(net, weights, x):
    for name in ("hidden0", "hidden1"):
        x = jax.nn.relu(dense(weights, name, x))
    return dense(weights, "head", x)


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def convolutions(net, weights, x):
    stride = 1 if net.kind == "pooled" else 2
    for i in range(nets.CONVOLUTIONS):
        kernel = weights[f"convolution{i}/kernel"]
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)
        x = x + weights[f"convolution{i}/bias"]
        x = jax.nn.relu(normalise(weights, f"normalisation{i}", x, (0, 1, 2)))
        x = max_pool(x) if net.kind == "pooled" else x
    return dense(weights, "head", x.reshape(len(x), -1) if net.kind == "pooled" else x.mean((1, 2)))


def lstm(net, weights, tokens):
    inputs = weights["embedding"][tokens] @ weights["lstm/kernel"] + weights["lstm/bias"]

    def step(carry, gates):
        output, memory = carry
        enter, forget, candidate, leave = jnp.split(gates + output @ weights["lstm/recurrent_kernel"], 4, -1)
        memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return (jax.nn.sigmoid(leave) * jnp.tanh(memory), memory), None

    start = jnp.zeros((len(tokens), net.width), inputs.dtype)
    (output, _), _ = jax.lax.scan(step, (start, start), inputs.swapaxes(0, 1))
    return dense(weights, "head", output)


def attention(weights, name, x):
    query, key, value = (
        dense(weights, f"{name}/{part}", x).reshape(*x.shape[:2], nets.HEADS, -1) for part in ("query", "key", "value")
    )
    scores = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5)
    return dense(weights, f"{name}/output", jnp.einsum("nhqk,nkhd->nqhd", scores, value).reshape(x.shape))


def transformer(net, weights, tokens):
    x = weights["embedding"][tokens] + weights["position_embedding"]
    for i in range(nets.BLOCKS):
        x = normalise(weights, f"normalisation{2 * i}", x + attention(weights, f"attention{i}", x), -1)
        hidden = jax.nn.relu(dense(weights, f"expand{i}", x))
        x = normalise(weights, f"normalisation{2 * i + 1}", x + dense(weights, f"contract{i}", hidden), -1)
    return dense(weights, "head", x.mean(1))


FORWARD = {"mlp": mlp, "pooled": convolutions, "strided": convolutions, "lstm": lstm, "transformer": transformer}


class Jax(Implementation):
    def __init__(self, row, weights, episodes):
        if next(iter(weights.values())).dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.row = row
        self.forward = functools.partial(FORWARD[row.net.kind], row.net)
        self.weights = {name: jnp.asarray(value) for name, value in weights.items()}
        self.episodes = [jnp.asarray(value) for value in episodes.values()]
        self.optimizer = optax.adam(OUTER_LEARNING_RATE)
        self.state = self.optimizer.init(self.weights)
        self.step = jax.jit(self._step)
        self.gradients = jax.jit(self._meta_gradient)

    def _loss(self, weights, x, y):
        predictions = self.forward(weights, x)
        if self.row.regression:
            return jnp.square(predictions - y).mean()
        return optax.softmax_cross_entropy_with_integer_labels(predictions, y).mean()

    def _task_loss(self, weights, support_x, support_y, query_x, query_y):
        for _ in range(self.row.steps):
            gradients = jax.grad(self._loss)(weights, support_x, support_y)
            weights = jax.tree.map(lambda w, g: w - self.row.learning_rate * g, weights, gradients)
        return self._loss(weights, query_x, query_y)

    def _meta_gradient(self, weights, *episodes):
        axes = (None, 0, 0, 0, 0)
        losses, gradients = jax.vmap(jax.value_and_grad(self._task_loss), axes)(weights, *episodes)
        return losses.mean(), jax.tree.map(lambda g: g.mean(0), gradients)

    def _step(self, weights, state, *episodes):
        loss, gradients = self._meta_gradient(weights, *episodes)
        updates, state = self.optimizer.update(gradients, state)
        return optax.apply_updates(weights, updates), state, loss

    def meta_gradient(self, episodes):
        _, gradients = self.gradients(self.weights, *episodes.values())
        return {name: jax.device_get(gradient) for name, gradient in gradients.items()}

    def run(self, steps):
        for _ in range(steps):
            self.weights, self.state, loss = self.step(self.weights, self.state, *self.episodes)
        jax.block_until_ready((self.weights, loss))
