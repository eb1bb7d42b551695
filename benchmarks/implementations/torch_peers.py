"""PyTorch: a loop over tasks by hand, by `higher`, by TorchOpt, and `torch.func.vmap`.

The parameters of every module come in the order of `nets.Net.parameters`.
"""

import functools

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks import nets
from benchmarks.implementations import Implementation
from benchmarks.rows import OUTER_LEARNING_RATE


class Convolutions(nn.Module):
    def __init__(self, net):
        super().__init__()
        channels, self.pooled = net.input_shape[-1], net.kind == "pooled"
        blocks = []
        for _ in range(nets.CONVOLUTIONS):
            block = [
                nn.Conv2d(channels, net.width, 3, stride=1 if self.pooled else 2, padding=1),
                nn.BatchNorm2d(net.width, eps=nets.EPSILON, track_running_stats=False),
                nn.ReLU(),
            ]
            blocks.append(nn.Sequential(*block, nn.MaxPool2d(2)) if self.pooled else nn.Sequential(*block))
            channels = net.width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(net.parameters()["head/kernel"][0], net.outputs)

    def forward(self, images):
        x = self.blocks(images)
        return self.head(x.permute(0, 2, 3, 1).flatten(1) if self.pooled else x.mean(dim=(2, 3)))


class LSTM(nn.Module):
    """`nn.LSTM` has two biases, Keras's layer one: the second is a constant 0 here."""

    step_by_step = False  # `torch.lstm` cannot be vectorised

    def __init__(self, net):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(net.vocabulary, net.width))
        self.kernel = nn.Parameter(torch.empty(4 * net.width, net.width))
        self.recurrent_kernel = nn.Parameter(torch.empty(4 * net.width, net.width))
        self.bias = nn.Parameter(torch.empty(4 * net.width))
        self.head = nn.Linear(net.width, net.outputs)
        self.register_buffer("zero", torch.zeros(4 * net.width))

    def forward(self, tokens):
        x = functional.embedding(tokens, self.embedding)
        start = x.new_zeros(1, len(tokens), self.recurrent_kernel.shape[1])
        if self.step_by_step:
            return self.head(self._steps(functional.linear(x, self.kernel, self.bias), start[0]))
        parameters = [self.kernel, self.recurrent_kernel, self.bias, self.zero]
        return self.head(torch.lstm(x, (start, start), parameters, True, 1, 0.0, True, False, True)[0][:, -1])

    def _steps(self, inputs, start):
        output, memory = start, start
        for x in inputs.unbind(1):
            gates = x + functional.linear(output, self.recurrent_kernel)
            enter, forget, candidate, leave = gates.chunk(4, -1)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
            output = torch.sigmoid(leave) * torch.tanh(memory)
        return output


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        def heads(values):
            return values.unflatten(-1, (nets.HEADS, -1)).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        # Not `scaled_dot_product_attention`: its CPU kernel has no second derivative.
        scores = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        return self.output((scores @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = Attention(width)
        self.normalisation0 = nn.LayerNorm(width, eps=nets.EPSILON)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.normalisation1 = nn.LayerNorm(width, eps=nets.EPSILON)

    def forward(self, x):
        x = self.normalisation0(x + self.attention(x))
        return self.normalisation1(x + self.feed_forward(x))


class Transformer(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(net.vocabulary, net.width))
        self.positions = nn.Parameter(torch.empty(net.input_shape[0], net.width))
        self.blocks = nn.Sequential(*(Block(net.width) for _ in range(nets.BLOCKS)))
        self.head = nn.Linear(net.width, net.outputs)

    def forward(self, tokens):
        x = functional.embedding(tokens, self.embedding) + self.positions
        return self.head(self.blocks(x).mean(1))


def mlp(net):
    hidden = [nn.Linear(net.input_shape[0], net.width), nn.ReLU(), nn.Linear(net.width, net.width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(net.width, net.outputs))


MODULES = {"mlp": mlp, "pooled": Convolutions, "strided": Convolutions, "lstm": LSTM, "transformer": Transformer}


class Torch(Implementation):
    """What the peers share: module, episodes, optimizer. A peer gives `backward`.

    Where a convolution of stride 2 meets an even side, TensorFlow pads one pixel at the end and PyTorch one at both
    ends, of which it then uses the first. Mirrored images and kernels make the two the same, at no cost.
    """

    def __init__(self, row, weights, episodes):
        self.row = row
        self.names = list(weights)
        self.module = MODULES[row.net.kind](row.net).to(getattr(torch, str(weights[self.names[0]].dtype)))
        with torch.no_grad():
            for (name, value), parameter in zip(weights.items(), self.module.parameters(), strict=True):
                parameter.copy_(torch.from_numpy(self._to_torch(name, value)))
        self.parameters = dict(self.module.named_parameters())
        self._take(episodes)
        self.loss = nn.functional.mse_loss if row.regression else nn.functional.cross_entropy
        self.optimizer = torch.optim.Adam(self.module.parameters(), OUTER_LEARNING_RATE)

    def _take(self, episodes):
        self.episodes = [self._episode_tensor(name, value) for name, value in episodes.items()]
        self.tasks = len(self.episodes[0])

    def _to_torch(self, name, value):
        if value.ndim == 4:
            value = value[::-1, ::-1] if self.row.net.kind == "strided" else value
            return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
        return np.ascontiguousarray(value.T) if name.endswith("kernel") else value

    def _from_torch(self, name, value):
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
            return value[::-1, ::-1] if self.row.net.kind == "strided" else value
        return value.T if name.endswith("kernel") else value

    def _episode_tensor(self, name, value):
        if name.endswith("x") and value.ndim == 5:
            value = value[:, :, ::-1, ::-1] if self.row.net.kind == "strided" else value
            value = np.ascontiguousarray(value.transpose(0, 1, 4, 2, 3))
        return torch.from_numpy(value.astype("int64") if value.dtype.kind == "i" else value)

    def backward(self):
        """Adds the meta-gradient to the parameters' `grad`."""
        raise NotImplementedError

    def meta_gradient(self, episodes):
        self._take(episodes)
        self.optimizer.zero_grad()
        self.backward()
        gradients = zip(self.names, self.module.parameters(), strict=True)
        return {name: self._from_torch(name, p.grad.numpy().copy()) for name, p in gradients}

    def run(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.backward()
            self.optimizer.step()


class TorchLoop(Torch):
    """One task after another, each with a backward pass of its own, so that only one task's graph is held."""

    def backward(self):
        for support_x, support_y, query_x, query_y in zip(*self.episodes, strict=True):
            values = self.parameters
            for _ in range(self.row.steps):
                loss = self.loss(functional_call(self.module, values, (support_x,)), support_y)
                gradients = torch.autograd.grad(loss, list(values.values()), create_graph=True)
                moved = zip(values.items(), gradients, strict=True)
                values = {name: value - self.row.learning_rate * gradient for (name, value), gradient in moved}
            loss = self.loss(functional_call(self.module, values, (query_x,)), query_y)
            (loss / self.tasks).backward()


class Higher(Torch):
    def __init__(self, row, weights, episodes):
        import higher

        super().__init__(row, weights, episodes)
        self.innerloop = higher.innerloop_ctx
        self.inner_optimizer = torch.optim.SGD(self.module.parameters(), row.learning_rate)

    def backward(self):
        for support_x, support_y, query_x, query_y in zip(*self.episodes, strict=True):
            with self.innerloop(self.module, self.inner_optimizer, copy_initial_weights=False) as (module, optimizer):
                for _ in range(self.row.steps):
                    optimizer.step(self.loss(module(support_x), support_y))
                (self.loss(module(query_x), query_y) / self.tasks).backward()


class TorchOpt(Torch):
    def __init__(self, row, weights, episodes):
        import torchopt

        super().__init__(row, weights, episodes)
        self.torchopt = torchopt
        self.inner_optimizer = torchopt.MetaSGD(self.module, lr=row.learning_rate)

    def backward(self):
        extract, recover = self.torchopt.extract_state_dict, self.torchopt.recover_state_dict
        theta = extract(self.module, by="reference", detach_buffers=True)
        start = extract(self.inner_optimizer, by="reference")
        losses = []
        for support_x, support_y, query_x, query_y in zip(*self.episodes, strict=True):
            for _ in range(self.row.steps):
                self.inner_optimizer.step(self.loss(self.module(support_x), support_y))
            losses.append(self.loss(self.module(query_x), query_y))
            recover(self.module, theta)
            recover(self.inner_optimizer, start)
        torch.stack(losses).mean().backward()


class TorchVmapStock(Torch):
    """`torch.func` over PyTorch's own layers. Its rule for the derivative of a normalisation under `vmap` takes the
    batch's moments for constants, so the second derivative is wrong (PyTorch 2.13, float64 too)."""

    def __init__(self, row, weights, episodes):
        super().__init__(row, weights, episodes)
        self.module.step_by_step = True
        self.gradients = torch.func.grad(self._mean_loss)

    def _loss(self, values, x, y):
        return self.loss(functional_call(self.module, values, (x,)), y)

    def _task_loss(self, values, support_x, support_y, query_x, query_y):
        for _ in range(self.row.steps):
            gradients = torch.func.grad(self._loss)(values, support_x, support_y)
            values = {name: value - self.row.learning_rate * gradients[name] for name, value in values.items()}
        return self._loss(values, query_x, query_y)

    def _mean_loss(self, values):
        return torch.vmap(self._task_loss, in_dims=(None, 0, 0, 0, 0))(values, *self.episodes).mean()

    def backward(self):
        for name, gradient in self.gradients(self.parameters).items():
            self.parameters[name].grad = gradient.detach()


class TorchVmap(TorchVmapStock):
    """The same with normalisations spelt out in elementary operations, which makes it right."""

    def __init__(self, row, weights, episodes):
        super().__init__(row, weights, episodes)
        for module in self.module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = functools.partial(normalise, module, axes=(0, 2, 3), shape=(-1, 1, 1))
            elif isinstance(module, nn.LayerNorm):
                module.forward = functools.partial(normalise, module, axes=-1, shape=(-1,))


def normalise(module, x, axes, shape):
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    x = (x - mean) * torch.rsqrt(variance + module.eps)
    return x * module.weight.view(shape) + module.bias.view(shape)
