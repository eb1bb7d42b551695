"""Settings of papers, ready to run, and what meta-learning has to beat.

    recipe = keras_maml.recipes.omniglot_5way_1shot_maml()
    splits = keras_maml.datasets.omniglot(data_dir, **recipe.data)
    train = keras_maml.episodes.from_arrays(*splits["train"], seed=0, **recipe.episodes)
    meta_model = keras_maml.MetaModel(recipe.model, recipe.algorithm)
    meta_model.compile(**recipe.compile)
    meta_model.fit(train, steps_per_epoch=recipe.iterations // 60, epochs=60)

`recipes.networks` has the nets, `recipes.baselines` pretraining with fine-tuning, nearest centroids and joint training.
"""

from keras_maml.recipes import baselines
from keras_maml.recipes import networks
from keras_maml.recipes.papers import Recipe
from keras_maml.recipes.papers import mini_imagenet_5way_1shot_maml
from keras_maml.recipes.papers import mini_imagenet_5way_5shot_maml
from keras_maml.recipes.papers import omniglot_1shot_prototypical
from keras_maml.recipes.papers import omniglot_20way_1shot_maml
from keras_maml.recipes.papers import omniglot_20way_1shot_maml_plus_plus
from keras_maml.recipes.papers import omniglot_20way_5shot_maml
from keras_maml.recipes.papers import omniglot_5shot_prototypical
from keras_maml.recipes.papers import omniglot_5way_1shot_maml
from keras_maml.recipes.papers import omniglot_5way_1shot_maml_plus_plus
from keras_maml.recipes.papers import omniglot_5way_1shot_reptile
from keras_maml.recipes.papers import omniglot_5way_5shot_maml
from keras_maml.recipes.papers import sinusoid_maml
