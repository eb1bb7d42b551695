"""What all tests share."""

import gc

import keras
import pytest

# Models and traced functions are millions of objects that stay, and Python would go through them again and again:
# between modules is enough, for those that are new.
gc.disable()


@pytest.fixture
def float64():
    """All that is made within the test is in float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.fixture(scope="module", autouse=True)
def _collected():
    yield
    keras.backend.clear_session(free_memory=False)
    gc.collect()
    gc.freeze()
