import os

import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes
from keras_maml.episodes import folders


def write(path, value, size=(6, 6), channels=3, encode=tf.io.encode_png):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.full((*size, channels), value, "uint8")).numpy())


@pytest.fixture
def characters(tmp_path):
    """Two alphabets of two characters with 3 images each, whose grey level tells them apart."""
    for i, name in enumerate(["Greek/alpha", "Greek/beta", "Latin/a", "Latin/b"]):
        for j in range(3):
            write(tmp_path / "characters" / name / f"{j}.png", 60 * i + 10 * j)
    return tmp_path / "characters"


def test_classes_are_the_paths_of_folders(characters):
    images, labels = episodes.read_folder(characters, 6)
    assert images.shape == (12, 6, 6, 3) and images.dtype == np.uint8
    assert labels.tolist() == np.repeat(["Greek/alpha", "Greek/beta", "Latin/a", "Latin/b"], 3).tolist()
    levels = [60 * i + 10 * j for i in range(4) for j in range(3)]
    np.testing.assert_array_equal(images, np.broadcast_to(np.reshape(levels, (12, 1, 1, 1)), images.shape))


def test_episodes_within_an_alphabet(characters):
    _, labels = episodes.read_folder(characters, 6)
    alphabets = [label.split("/")[0] for label in labels]
    dataset = episodes.from_folder(
        str(characters), 6, channels=1, ways=2, shots=1, queries=2, tasks=20, seed=0, within=alphabets
    )
    x, y = next(iter(dataset))
    greek = x["query_x"].numpy()[..., 0, 0, 0] < 120
    assert (greek == greek[:, :1]).all() and 0 < greek.mean() < 1
    assert y.shape == (20, 4)


def test_all_kinds_of_images_are_read_and_resized(tmp_path):
    kinds = {".png": tf.io.encode_png, ".jpg": tf.io.encode_jpeg, ".JPEG": tf.io.encode_jpeg}
    for i, (suffix, encode) in enumerate(kinds.items()):
        write(tmp_path / "a" / f"{i}{suffix}", 40 + i, size=(5 + i, 9), encode=encode)
    images, labels = episodes.read_folder(tmp_path, (4, 3))
    # A kernel that sums to 1 leaves a flat image as it is.
    np.testing.assert_array_equal(images, np.broadcast_to(np.reshape([40, 41, 42], (3, 1, 1, 1)), (3, 4, 3, 3)))
    assert labels.tolist() == ["a"] * 3


def test_a_size_is_that_of_an_antialiased_lanczos_kernel(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype("uint8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(tf.io.encode_png(image).numpy())
    pillow = pytest.importorskip("PIL.Image")
    images, _ = episodes.read_folder(tmp_path, (10, 8))
    for channel in range(3):
        expected = pillow.fromarray(image[..., channel].astype("float32")).resize((8, 10), pillow.Resampling.LANCZOS)
        np.testing.assert_allclose(images[0, ..., channel], np.clip(expected, 0, 255), atol=0.51)


def test_what_is_hidden_is_no_image(characters):
    (characters / ".DS_Store").write_text("")
    (characters / "Greek" / "alpha" / "Thumbs.db").write_text("")
    (characters / ".git").mkdir()
    (characters / ".git" / "x.png").write_text("")
    assert len(episodes.read_folder(characters, 6)[0]) == 12


class TestCache:
    def read(self, characters, tmp_path, size=6, **arguments):
        return episodes.read_folder(characters, size, cache=tmp_path / "kept" / "images.npy", **arguments)

    def test_is_mapped_the_second_time(self, characters, tmp_path, monkeypatch):
        first, labels = self.read(characters, tmp_path)
        monkeypatch.setattr(folders, "_decoded", None)  # nothing is decoded again
        second, again = self.read(characters, tmp_path)
        assert isinstance(second, np.memmap)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(labels, again)
        np.testing.assert_array_equal(second, np.load(tmp_path / "kept" / "images.npy"))

    def test_is_made_anew_when_files_or_settings_change(self, characters, tmp_path):
        self.read(characters, tmp_path)
        assert self.read(characters, tmp_path, size=3)[0].shape == (12, 3, 3, 3)
        assert self.read(characters, tmp_path, channels=1)[0].shape == (12, 6, 6, 1)
        changed = characters / "Latin" / "b" / "2.png"
        write(changed, 7)
        os.utime(changed, ns=(1, 1))
        assert self.read(characters, tmp_path)[0][-1].max() == 7
        changed.unlink()
        assert len(self.read(characters, tmp_path)[0]) == 11

    def test_remembers_what_could_not_be_read(self, characters, tmp_path):
        (characters / "Greek" / "beta" / "1.png").write_text("no image")
        for _ in range(2):
            with pytest.warns(UserWarning, match="1 files that cannot be decoded, such as .*beta.*1.png"):
                images, labels = self.read(characters, tmp_path, skip_unreadable=True)
            assert len(images) == len(labels) == 11 and (labels == "Greek/beta").sum() == 2
        with pytest.raises(ValueError, match="1 of 12 files cannot be decoded"):
            self.read(characters, tmp_path)


def test_unreadable_images_are_named_and_skipped_if_asked_for(characters):
    for name in ("Greek/alpha/0.png", "Latin/b/2.png"):  # the first and the last of all
        (characters / name).write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"2 of 12 files cannot be decoded as an image, the first is '.*alpha.0.png'"):
        episodes.read_folder(characters, 6)
    with pytest.warns(UserWarning, match="2 files that cannot be decoded"):
        images, labels = episodes.read_folder(characters, 6, skip_unreadable=True)
    assert images[:, 0, 0, 0].tolist() == [10, 20, 60, 70, 80, 120, 130, 140, 180, 190]
    assert labels.tolist().count("Greek/alpha") == labels.tolist().count("Latin/b") == 2


def test_errors(characters, tmp_path):
    def check(message, directory=characters, size=6, **arguments):
        with pytest.raises(ValueError, match=message):
            episodes.read_folder(directory, size, **arguments)

    check("is no folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    check("holds no images", tmp_path / "empty")
    check("`image_size` must be", size=0)
    check("`channels` must be 1, 3 or 4", channels=2)
    check("`cache` must be the path of a .npy file", cache=tmp_path / "images")
    (characters / "Greek" / "gamma").mkdir()
    check("1 folders hold no image, the first is '.*gamma'")
    (characters / "Greek" / "gamma").rmdir()
    (characters / "Greek" / "notes.txt").write_text("")
    check("1 files are no images by their names, the first is '.*notes.txt'")
    with pytest.warns(UserWarning, match="notes.txt"):
        assert len(episodes.read_folder(characters, 6, skip_unreadable=True)[0]) == 12
    (characters / "Greek" / "notes.txt").unlink()
    write(characters / "loose.png", 1)
    check("1 images lie in .* have no class, such as 'loose.png'")
    with pytest.raises(ValueError, match="`ways` must be"):  # before anything is read
        episodes.from_folder(tmp_path / "nowhere", 6, ways=0, shots=1, queries=1, tasks=2)
    with pytest.raises(TypeError, match="way"):
        episodes.from_folder(characters, 6, way=2, shots=1, queries=1, tasks=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_kind_of_file_has_every_number_of_channels(tmp_path, channels):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype("uint8")
    modes = {"png": ["L", "LA", "RGB", "RGBA", "P"], "gif": ["RGB"], "bmp": ["L", "RGB"], "jpg": ["L", "RGB"]}
    (tmp_path / "a").mkdir()
    for suffix, of_suffix in modes.items():
        for mode in of_suffix:
            image.fromarray(pixels).convert(mode).save(tmp_path / "a" / f"{mode}.{suffix}")
    images, _ = episodes.read_folder(tmp_path, 8, channels)
    assert images.shape == (10, 8, 8, channels)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    exact = images[files.index("RGB.bmp")].astype(int)
    grey = pixels @ [0.2989, 0.587, 0.114]
    expected = {1: grey[..., None], 3: pixels, 4: np.concatenate([pixels, np.full((8, 8, 1), 255)], -1)}[channels]
    assert np.abs(exact - expected).max() <= (1 if channels == 1 else 0)
    if channels == 4:  # no other file of these has pixels that show what is behind
        assert (images[[name not in ("LA.png", "RGBA.png") for name in files]][..., 3] == 255).all()


def test_links_are_followed_but_not_round_in_circles(characters, tmp_path):
    images, labels = episodes.read_folder(characters, 6)
    classes = sorted(set(labels.tolist()))
    os.symlink(characters / classes[0], characters / "linked")
    os.symlink(characters, characters / classes[1] / "up")
    found = episodes.read_folder(characters, 6)[1].tolist()
    assert sorted(set(found)) == sorted([*classes, "linked"])
    assert found.count("linked") == found.count(classes[0])


def test_a_cache_may_lie_in_the_folder_and_be_damaged(characters):
    cache = characters / "kept.npy"
    expected = episodes.read_folder(characters, 6)[0]
    for damage in (None, None, ("kept.npy.json", b'{"st'), ("kept.npy.json", b"{}"), ("kept.npy", b"no array")):
        if damage is not None:
            (characters / damage[0]).write_bytes(damage[1])
        np.testing.assert_array_equal(episodes.read_folder(characters, 6, cache=cache)[0], expected)


@pytest.mark.parametrize("same", ["size", "time"])
def test_a_cache_of_files_that_changed_is_not_used(characters, same):
    cache = characters.parent / "kept.npy"
    path = sorted(characters.rglob("*.png"))[0]
    path.write_bytes(path.read_bytes().ljust(500, b"\0"))  # behind the end of a PNG file anything may stand
    before, _ = episodes.read_folder(characters, 6, cache=cache)
    status = path.stat()
    write(path, 77)
    path.write_bytes(path.read_bytes().ljust(500 if same == "size" else 600, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (10**9 if same == "size" else 0)))
    after, _ = episodes.read_folder(characters, 6, cache=cache)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, episodes.read_folder(characters, 6)[0])
