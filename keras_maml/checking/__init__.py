"""A look before a run: what a `MetaModel` and its episodes will do, and what is wrong with them."""

from keras_maml.checking.checker import check
from keras_maml.checking.findings import CheckReport
from keras_maml.checking.findings import Finding
from keras_maml.checking.findings import VariableReport
