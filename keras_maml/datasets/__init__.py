"""Task families and splits that papers use."""

from keras_maml.datasets.clinc150 import clinc150
from keras_maml.datasets.omniglot import omniglot
from keras_maml.datasets.sinusoid import sinusoid
