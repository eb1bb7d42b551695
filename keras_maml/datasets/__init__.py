"""Task families and splits that papers use."""

from keras_maml.datasets.cifar_fs import cifar_fs
from keras_maml.datasets.clinc150 import clinc150
from keras_maml.datasets.gaussian_process import gaussian_process
from keras_maml.datasets.harmonic import harmonic
from keras_maml.datasets.mini_imagenet import mini_imagenet
from keras_maml.datasets.omniglot import omniglot
from keras_maml.datasets.sinusoid import sinusoid
from keras_maml.datasets.sinusoid_and_line import sinusoid_and_line
