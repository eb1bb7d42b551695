"""Episodes from what a user has: arrays, folders, tables, texts, datasets, functions; `tf.data` pipelines all.

In the order in which data flows: sources (`folders`, `tables`, `text`, `tf_datasets`) give arrays, `sampling` draws the
rows of an episode by numbers from `draws` and `counts`, `arrays` reads them, `pipeline` makes the dataset.
"""

from keras_maml.episodes.arrays import from_arrays
from keras_maml.episodes.arrays import from_groups
from keras_maml.episodes.augmentation import augment
from keras_maml.episodes.augmentation import rotate_classes
from keras_maml.arguments import check_whole
from keras_maml.episodes.counts import AtMost
from keras_maml.episodes.counts import ImbalancedShots
from keras_maml.episodes.counts import PerClass
from keras_maml.episodes.counts import Shots
from keras_maml.episodes.describing import describe
from keras_maml.episodes.draws import normal
from keras_maml.episodes.draws import uniform
from keras_maml.episodes.folders import from_folder
from keras_maml.episodes.folders import read_folder
from keras_maml.episodes.mixtures import mixture
from keras_maml.episodes.pipeline import fixed
from keras_maml.episodes.pipeline import from_function
from keras_maml.episodes.plotting import plot
from keras_maml.episodes.splits import check_disjoint
from keras_maml.episodes.splits import split_classes
from keras_maml.episodes.tables import from_table
from keras_maml.episodes.tables import read_table
from keras_maml.episodes.text import from_text
from keras_maml.episodes.text import read_text
from keras_maml.episodes.tf_datasets import from_dataset
from keras_maml.episodes.tf_datasets import from_tfds
from keras_maml.episodes.tf_datasets import read_dataset
from keras_maml.episodes.tf_datasets import read_tfds
