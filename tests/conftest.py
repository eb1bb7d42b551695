"""What all tests share."""

import gc

import keras
import pytest

# Models and traced functions are millions of objects that stay, and Python would go through them again and again:
# between modules is enough, for those that are new.
gc.disable()


@pytest.fixture(scope="module", autouse=True)
def _collected():
    yield
    keras.backend.clear_session()
    gc.collect()
    gc.freeze()
