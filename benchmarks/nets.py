"""The nets of the benchmark: their parameters in a layout that belongs to no framework, and their operations.

| kind | net |
|---|---|
| `mlp` | two hidden layers of ReLU, a linear output |
| `pooled` | 4 x [convolution 3x3, batch normalisation, ReLU, max-pool 2x2], flat, dense |
| `strided` | 4 x [convolution 3x3 of stride 2, batch normalisation, ReLU], mean over pixels, dense |
| `lstm` | embedding, LSTM, its last output, dense |
| `transformer` | embedding and positions, 2 x [attention of 4 heads, feed-forward of twice the width], mean, dense |

Convolutions pad as TensorFlow's "same" does. Normalisations use an epsilon of 1e-3 and the batch's own moments. In the
Transformer each half of a block is `normalise(x + half(x))`.
"""

import dataclasses
import math

EPSILON = 1e-3
CONVOLUTIONS = 4
BLOCKS = 2
HEADS = 4


@dataclasses.dataclass(frozen=True)
class Net:
    """A net of one of the kinds above.

    Args:
        kind: see the table.
        input_shape: of one example: (features,), (height, width, channels) or (tokens,).
        outputs: units of the last layer.
        width: units or filters of the others.
        vocabulary: number of words; 0 for inputs that are numbers.
    """

    kind: str
    input_shape: tuple
    outputs: int
    width: int
    vocabulary: int = 0

    def parameters(self):
        """Shapes by name, in Keras's order.

        Kernels are (height, width, inputs, outputs) or (inputs, outputs), embeddings (words, width). The four gates of
        the LSTM stand side by side: input, forget, candidate, output; so do the heads of an attention.
        """
        width = self.width
        shapes = {}
        if self.kind == "mlp":
            shapes |= _dense("hidden0", self.input_shape[0], width) | _dense("hidden1", width, width)
        elif self.kind in ("pooled", "strided"):
            channels = self.input_shape[-1]
            for i in range(CONVOLUTIONS):
                shapes |= {f"convolution{i}/kernel": (3, 3, channels, width), f"convolution{i}/bias": (width,)}
                shapes |= _normalisation(f"normalisation{i}", width)
                channels = width
        elif self.kind == "lstm":
            shapes |= {
                "embedding": (self.vocabulary, width),
                "lstm/kernel": (width, 4 * width),
                "lstm/recurrent_kernel": (width, 4 * width),
                "lstm/bias": (4 * width,),
            }
        else:
            shapes |= {"embedding": (self.vocabulary, width), "position_embedding": (self.input_shape[0], width)}
            for i in range(BLOCKS):
                for part in ("query", "key", "value", "output"):
                    shapes |= _dense(f"attention{i}/{part}", width, width)
                shapes |= _normalisation(f"normalisation{2 * i}", width)
                shapes |= _dense(f"expand{i}", width, 2 * width) | _dense(f"contract{i}", 2 * width, width)
                shapes |= _normalisation(f"normalisation{2 * i + 1}", width)
        return shapes | _dense("head", self._features(), self.outputs)

    def sizes(self):
        """Side of the square image that each convolution writes."""
        side, sides = self.input_shape[0], []
        for _ in range(CONVOLUTIONS):
            sides.append(math.ceil(side / 2) if self.kind == "strided" else side)
            side = sides[-1] if self.kind == "strided" else side // 2
        return sides

    def flops(self):
        """`(forward, first)`: floating-point operations on one example in all matrix products, and in the first layer.

        A multiplication and an addition are two. The first layer is the one whose inputs need no gradient: it is an
        embedding, which has no products, where the inputs are tokens.
        """
        shapes = self.parameters()
        forward = first = 0
        for name, shape in shapes.items():
            if name.endswith("kernel"):
                forward += 2 * math.prod(shape) * self._uses(name)
                first = first or forward
        if self.kind == "transformer":  # scores and weighted values, of all heads together
            forward += BLOCKS * 2 * (2 * self.input_shape[0] ** 2 * self.width)
        return forward, 0 if self.vocabulary else first

    def _features(self):
        return self.width * (self.sizes()[-1] // 2) ** 2 if self.kind == "pooled" else self.width

    def _uses(self, name):
        """How many times an example passes through a kernel: once a pixel, once a token, or once."""
        if name.startswith("convolution"):
            return self.sizes()[int(name[len("convolution")])] ** 2
        return self.input_shape[0] if self.vocabulary and name != "head/kernel" else 1


def _dense(name, inputs, outputs):
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def _normalisation(name, width):
    return {f"{name}/scale": (width,), f"{name}/offset": (width,)}
