"""Layers for few-shot learners."""

from keras_maml.layers.context import ContextParameters
from keras_maml.layers.normalization import STATISTICS
from keras_maml.layers.normalization import BatchNormalization
from keras_maml.layers.normalization import _route_once
from keras_maml.layers.normalization import adaptation_scope
from keras_maml.layers.normalization import exact_moments
from keras_maml.layers.normalization import pools_exactly
from keras_maml.layers.normalization import statistics_of
from keras_maml.layers.per_step import PerStepBatchNormalization
from keras_maml.layers.per_step import per_step_normalization
