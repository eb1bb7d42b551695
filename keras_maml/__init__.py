"""Meta-learning for Keras: learn any model so that it learns a new task from a handful of examples."""

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"keras_maml needs Keras on TensorFlow, and Keras runs on '{keras.config.backend()}'. Set the environment "
        "variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

from keras_maml import callbacks
from keras_maml import datasets
from keras_maml import episodes
from keras_maml import heads
from keras_maml import layers
from keras_maml import learning_rules
from keras_maml import meta_gradients
from keras_maml import recipes
from keras_maml import task_mapping
from keras_maml.algorithms import ANIL
from keras_maml.algorithms import BOIL
from keras_maml.algorithms import CAVIA
from keras_maml.algorithms import FOMAML
from keras_maml.algorithms import IMAML
from keras_maml.algorithms import MAML
from keras_maml.algorithms import Algorithm
from keras_maml.algorithms import MAMLPlusPlus
from keras_maml.algorithms import MetaOptNet
from keras_maml.algorithms import MetaSGD
from keras_maml.algorithms import ProtoMAML
from keras_maml.algorithms import ProtoNet
from keras_maml.algorithms import R2D2
from keras_maml.algorithms import Reptile
from keras_maml.checking import check
from keras_maml.evaluation import evaluate_episodes
from keras_maml.heads import PrototypeHead
from keras_maml.heads import ZeroContext
from keras_maml.heads import RidgeHead
from keras_maml.heads import SVMHead
from keras_maml.heads import ZeroHead
from keras_maml.meta_model import MetaModel
from keras_maml.plots import plot_adaptation
from keras_maml.plots import plot_episode
from keras_maml.plots import plot_learned_rates
from keras_maml.plots import plot_regression_task
from keras_maml.plots import plot_tasks
from keras_maml.reports import EpisodeReport
from keras_maml.roles import biases
from keras_maml.roles import context_parameters
from keras_maml.roles import lora
from keras_maml.roles import normalization
from keras_maml.selection import exclude
from keras_maml.threads import set_threads

__version__ = "0.1.0"
