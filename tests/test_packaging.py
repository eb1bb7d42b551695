"""The wheel: what is in it, that it works where nothing else of the project is, and where it must refuse to."""

import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import keras_maml

ROOT = pathlib.Path(__file__).parents[1]

ADAPT = """
import importlib.metadata, json
import keras, numpy as np
import keras_maml

model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
model.set_weights([np.array([[3.0]])])
meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.25, 1))
meta_model.compile(loss="mse")
learner = meta_model.adapt(np.ones((1, 1)), np.ones((1, 1)))
print(json.dumps({
    "file": keras_maml.__file__,
    "version": importlib.metadata.version("keras-maml"),
    "prediction": float(learner(np.ones((1, 1)))[0, 0]),
}))
"""

# Keras itself stops where a backend is not installed, so it is stood in for by what keras_maml asks it.
REFUSE = """
import json, sys, types

messages = {}
for backend in ("torch", "jax"):
    sys.modules["keras"] = types.SimpleNamespace(config=types.SimpleNamespace(backend=lambda: backend))
    try:
        import keras_maml
    except ImportError as error:
        messages[backend] = str(error)
loaded = [name for name in sys.modules if name.startswith("keras_maml.") or name == "tensorflow"]
print(json.dumps([messages, loaded]))
"""


def run(code, folder, **environment):
    """What a program prints last, as JSON; `folder` is where it runs."""
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves folders in the sources, and might find old ones there."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "keras_maml", source / "keras_maml", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()  # must not be taken for part of the package
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = target.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


def test_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "keras_maml").rglob("*.py")}
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == modules | {"keras_maml/py.typed"}
    assert "keras_maml/datasets/__init__.py" in packaged
    assert any(name.endswith("/LICENSE") for name in names - packaged)


def test_metadata(wheel, metadata):
    assert wheel.name == f"keras_maml-{keras_maml.__version__}-py3-none-any.whl"
    assert "License: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    needed = {re.match(r"Requires-Dist: ([\w-]+)", line)[1] for line in required if "extra ==" not in line}
    assert needed == {"keras", "numpy", "tensorflow"}
    assert not [line for line in required if "<" in line or "==" in line.partition(";")[0]]  # no upper bounds
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    assert {f"Provides-Extra: {name}" for name in extras["options.extras_require"]} <= set(metadata.splitlines())


def test_installed_wheel_adapts(wheel, tmp_path):
    # Dependencies come from this environment, the package from a folder of its own; no index is asked.
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(command, check=True)
    result = run(ADAPT, elsewhere, PYTHONPATH=str(site))
    assert pathlib.Path(result["file"]) == site / "keras_maml" / "__init__.py"
    assert result["version"] == keras_maml.__version__
    # w = 3, target 1, gradient of the square 4, one step of 0.25
    assert result["prediction"] == 2.0


def test_other_backends_are_refused_early(tmp_path):
    messages, loaded = run(REFUSE, tmp_path, PYTHONPATH=str(ROOT))
    assert loaded == []  # not after seconds of other imports
    assert messages.keys() == {"torch", "jax"}
    for backend, message in messages.items():
        assert f"Keras runs on '{backend}'" in message
        assert "KERAS_BACKEND=tensorflow" in message
