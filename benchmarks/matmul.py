"""The fastest that these cores do float32 arithmetic: matrix products, by which floors are measured."""

import importlib.metadata
import time

import tensorflow as tf

SIZES = (1024, 2048)


class MatmulWorker:
    """Answers like a `worker.Worker`; TensorFlow's products were the fastest of three (NumPy, PyTorch)."""

    def __init__(self):
        self.matrices = [tf.random.normal((size, size)) for size in SIZES]

    def hello(self):
        return {"versions": {"tensorflow": importlib.metadata.version("tensorflow")}}

    def gflops(self, repeats=3):
        """The best of some products, in 1e9 operations a second: anything else that runs only makes them slower."""
        best = 0.0
        for matrix in self.matrices:
            for _ in range(repeats):
                start = time.perf_counter()
                tf.linalg.matmul(matrix, matrix).numpy()
                best = max(best, 2 * matrix.shape[0] ** 3 / (time.perf_counter() - start) / 1e9)
        return {"gflops": best}
