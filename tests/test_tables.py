import numpy as np
import pytest

from keras_maml import episodes

COLUMNS = {
    "width": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5],
    "petals": [1, 2, 3, 4, 5, 6],
    "species": ["b", "a", "b", "a", "b", "a"],
    "site": [7, 7, 8, 8, 7, 8],
}
X = np.stack([COLUMNS["width"], COLUMNS["petals"]], 1).astype("float32")


def as_csv(path, columns=COLUMNS):
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(params=["dict", "csv", "pandas"])
def table(request, tmp_path):
    if request.param == "csv":
        return as_csv(tmp_path / "plants.csv")
    if request.param == "pandas":
        return pytest.importorskip("pandas").DataFrame(COLUMNS)
    return COLUMNS


class TestReadTable:
    def test_columns(self, table):
        x, y = episodes.read_table(table, "species", ["width", "petals"])
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, X)
        assert y.tolist() == COLUMNS["species"]

    def test_the_others_are_features(self, table):
        x, y, groups = episodes.read_table(table, "petals", group="site", features=["width"])
        np.testing.assert_array_equal(x, X[:, :1])
        assert y.tolist() == COLUMNS["petals"] and groups.tolist() == COLUMNS["site"]
        x, _ = episodes.read_table(table, "species")
        np.testing.assert_array_equal(x, np.c_[X, COLUMNS["site"]])

    def test_several_inputs(self, table):
        x, _ = episodes.read_table(table, "species", {"size": ["width"], "counts": ["petals", "site"]})
        np.testing.assert_array_equal(x["size"], X[:, :1])
        np.testing.assert_array_equal(x["counts"], np.c_[X[:, 1], COLUMNS["site"]])

    def test_csv_with_quotes_and_empty_lines(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text('\ufeffname,"x, y"\n"one, two",1\n\nthree,2\n', encoding="utf-8")
        x, y = episodes.read_table(path, "name")
        np.testing.assert_array_equal(x, [[1], [2]])
        assert y.tolist() == ["one, two", "three"]

    def test_missing_values_are_named(self, tmp_path):
        path = tmp_path / "a.csv"
        with pytest.raises(ValueError, match="Column 'a' has 1 missing values of 3, the first in row 1"):
            episodes.read_table(as_csv(path, {"a": [1, "", 3], "b": "xyz"}), "b")
        with pytest.raises(ValueError, match="Column 'b' has 1 missing values of 3, the first in row 2"):
            episodes.read_table({"a": [1, 2, 3], "b": ["x", "y", ""]}, "b")
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"a": [1.0, None, 2.0], "b": ["x", "y", "z"]})
        with pytest.raises(ValueError, match="Column 'a' has 1 missing"):
            episodes.read_table(frame, "b")
        with pytest.raises(ValueError, match="Column 'b' has 1 missing values of 3, the first in row 2"):
            episodes.read_table(frame.assign(a=1.0, b=["x", "y", None]), "b")

    def test_errors(self, table, tmp_path):
        def check(message, table=table, target="species", features=None, group=None):
            with pytest.raises(ValueError, match=message):
                episodes.read_table(table, target, features, group)

        check(r"no column 'kind' for `target`. Received columns: \['width'", target="kind")
        check("no column 'kind' for `features`", features=["kind"])
        check("no column 'kind' for `group`", group="kind")
        check(r"Columns \['species'\] are no numbers.*StringLookup", target="site")
        check("`features` must be a list of columns", features="width")
        check("`features` must be a list of columns", features=[])
        check("must be a pandas DataFrame, the path of a CSV file or a dict", table=3)
        check("is no file", table=tmp_path / "nothing.csv")
        check("of one length", table={"species": [1, 2], "x": [1]})
        check("The table is empty", table={})
        (tmp_path / "a.csv").write_text("a,b\n")
        check("The table is empty", table=tmp_path / "a.csv")
        (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n")
        check("Line 3 of .* has 3 values, and the first line names 2 columns", table=tmp_path / "a.csv")
        (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
        check(r"Received: \['a'\] more than once", table=tmp_path / "a.csv")


class TestFromTable:
    def test_classes(self, table):
        sampling = dict(ways=2, shots=1, queries=2, tasks=5, seed=0)
        x, y = next(iter(episodes.from_table(table, "species", ["width", "petals"], **sampling)))
        assert x["support_x"].shape == (5, 2, 2)
        petals = np.concatenate([x["support_x"], x["query_x"]], 1)[..., 1]
        inside = np.concatenate([x["support_y"], y], 1)
        for row, labels in zip(petals, inside, strict=True):
            assert sorted(row) == [1, 2, 3, 4, 5, 6]
            assert len({(label, petal % 2) for label, petal in zip(labels, row, strict=True)}) == 2

    def test_groups(self, table):
        dataset = episodes.from_table(
            table, "petals", features=["width"], group="site", shots=1, queries=2, tasks=5, seed=0
        )
        x, y = next(iter(dataset))
        np.testing.assert_array_equal(x["query_x"][..., 0] - 0.5, y)
        sites = {petals: site for petals, site in zip(COLUMNS["petals"], COLUMNS["site"], strict=True)}
        for row in np.concatenate([x["support_y"], y], 1):
            assert len({sites[petals] for petals in row}) == 1

    def test_arguments_are_judged_first(self):
        with pytest.raises(ValueError, match="`shots` must be"):
            episodes.from_table("nothing.csv", "a", ways=2, shots=0, queries=1, tasks=1)
        with pytest.raises(ValueError, match="`queries` must be"):
            episodes.from_table("nothing.csv", "a", group="b", shots=1, queries=0, tasks=1)
        with pytest.raises(TypeError, match="ways"):
            episodes.from_table("nothing.csv", "a", group="b", ways=2, shots=1, queries=1, tasks=1)


@pytest.mark.parametrize(
    "written, read",
    [
        (["07", "7", "007", "8"], ["07", "7", "007", "8"]),
        (["1_0", "10", "1e1", "10"], ["1_0", "10", "1e1", "10"]),
        (["7", "7", "-8", "8"], [7, 7, -8, 8]),
        (["123456789012345678901", "7"], ["123456789012345678901", "7"]),
    ],
)
def test_labels_of_a_file_stay_apart(tmp_path, written, read):
    path = tmp_path / "table.csv"
    path.write_text("x,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(written)))
    x, labels = episodes.read_table(path, "y")
    assert labels.tolist() == read
    assert x[:, 0].tolist() == list(range(len(written)))
    assert episodes.read_table(path, "x", features=["x"], group="y")[2].tolist() == read


def test_a_file_in_another_encoding_is_refused_by_name(tmp_path):
    (tmp_path / "table.csv").write_bytes("x,y\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match="table.csv' is not written in UTF-8"):
        episodes.read_table(tmp_path / "table.csv", "y")


@pytest.mark.parametrize("dtype, value", [("string", "a"), ("boolean", True), ("Int64", 3)])
def test_missing_values_of_pandas_are_missing(dtype, value):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"x": [1, 2], "y": pandas.array([value, pandas.NA], dtype=dtype)})
    with pytest.raises(ValueError, match="1 missing values of 2, the first in row 1"):
        episodes.read_table(table, "y")
