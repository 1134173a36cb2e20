"""Lists as people write them: splits in any column, odd labels, dialects and forms of paths."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from peftbench import data
from peftbench.data import columns, labels, tables
from peftbench.data.listing import Listing
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec

CAFE = {form: unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")}
SPLITS = ["train"] * 5 + ["val"] + ["test"] * 2


def read(path: Path) -> Listing:
    return data.READERS["folder"](DatasetSpec(name="folder", reader="folder", root=str(path)))


def told(listing: Listing) -> str:
    return " ".join(data.describe(listing)[1:])


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(make_folder) -> Path:
    """Eight images of each of two classes."""
    return make_folder({"a": 8, "b": 8})


def with_column(root: Path, name: str, values: list[str]) -> Path:
    """A list of `root` with a column of one value for each image of a class."""
    lines = [f"{c}/{i:03d}.png,{c},{values[i]}" for c in "ab" for i in range(8)]
    path = root / "list.csv"
    path.write_text("\n".join([f"path,label,{name}", *lines]) + "\n", encoding="utf-8")
    return path


def with_labels(root: Path, values: list[str]) -> Path:
    """A list of `root` whose images have these labels in turn."""
    lines = [f'{c}/{i:03d}.png,"{values[(8 * (c == "b") + i) % len(values)]}"'
             for c in "ab" for i in range(8)]  # fmt: skip
    path = root / "list.csv"
    path.write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["set", "fold", "partition", "phase", "Usage", "subset", "dataset", "mode", "purpose"]
)
@pytest.mark.parametrize("write", [str, str.upper, "{}ing_set".format])
def test_a_column_of_splits_is_used_under_any_name(root: Path, name: str, write) -> None:
    values = [write(s) if s != "val" else "dev" for s in SPLITS]
    listing = read(with_column(root, name, values))
    assert [len(part) for _, part in listing.splits()] == [10, 2, 4]
    assert f"Splits are those of its column {name.lower()!r}" in told(listing)


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("is_train", "1", "0"),
        ("training", "True", "False"),
        ("is_training_img", "1", "0"),
        ("train", "1.0", "0.0"),
        ("is_test", "no", "yes"),
        ("test", "0", "1"),
    ],
)
def test_yes_and_no_are_splits_where_the_column_says_of_what(root: Path, name, yes, no) -> None:
    values = [no if split == "test" else yes for split in SPLITS]
    listing = read(with_column(root, name, values))
    assert (len(listing.train) + len(listing.val), len(listing.test)) == (12, 4)
    assert {name[2:] for name in listing.test.names} == {"006.png", "007.png"}


@pytest.mark.parametrize("name", ["fold", "kfold", "subset", "partition"])
def test_a_column_that_may_mean_a_split_and_is_none_is_told_of(root: Path, name: str) -> None:
    listing = read(with_column(root, name, [str(i % 4) for i in range(8)]))
    assert f"Its column {name!r} ('0', '1', '2', '3') names no train and test" in told(listing)
    assert "Split drawn here" in data.describe(listing)[0]


@pytest.mark.parametrize("value", ["PublicTest", "unused", ""])
def test_a_value_that_is_no_split_beside_splits_is_refused(root: Path, value: str) -> None:
    path = with_column(root, "Usage", ["train"] * 5 + [value] + ["test"] * 2)
    assert f"line 7: column 'usage' names splits, and {value!r} is none" in refused(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("photographer", ["ann", "bob"] * 4),
        ("train", ["steam", "diesel"] * 4),
        ("width", list("01234567")),
        ("difficult", ["0", "1"] * 4),
    ],
)
def test_other_columns_stay_unread_without_a_word(root: Path, name, values) -> None:
    listing = read(with_column(root, name, values))
    assert "column" not in told(listing) or name == "train"
    assert "Split drawn here" in data.describe(listing)[0]


def test_two_columns_of_splits_that_differ_are_refused() -> None:
    rows = [(2, ["a", "train", "test"]), (3, ["b", "test", "train"])]
    with pytest.raises(DataError, match="columns 's1' and 's2' say different things"):
        columns.split_column(["path", "s1", "s2"], rows, [1, 2], "list.csv")
    same = [(line, [*cells[:2], cells[1]]) for line, cells in rows]
    assert columns.split_column(["path", "s1", "s2"], same, [1, 2], "list.csv").column == 1


@pytest.mark.parametrize("gap", ["NaN", "nan", "<NA>", "#N/A"])
def test_a_gap_is_no_class(root: Path, gap: str) -> None:
    text = refused(with_labels(root, [gap, "x", "y", "x"]))
    assert f"line 2: 4 labels are {gap!r}, which is how gaps are written" in text


@pytest.mark.parametrize("word", ["None", "NA", "?", "unknown"])
def test_a_class_that_may_be_a_gap_is_told_of(root: Path, word: str) -> None:
    listing = read(with_labels(root, [word, "x"]))
    assert f"Label {word!r} of 8 images is taken for a class." in told(listing)


def test_labels_that_look_alike_are_told_of(root: Path) -> None:
    assert "'Cat' and 'cat'" in told(read(with_labels(root, ["Cat", "cat", "dog", "dog"])))
    assert "'1' and '1.0'" in told(read(with_labels(root, ["1", "1.0", "2", "2"])))
    assert told(read(with_labels(root, ["1", "2", "cat", "dog"]))) == ""


def test_one_accent_in_two_forms_is_one_label(root: Path) -> None:
    listing = read(with_labels(root, [CAFE["NFC"], CAFE["NFD"], "x", "x"]))
    assert listing.class_names == (CAFE["NFC"], "x") or listing.class_names == ("x", CAFE["NFC"])
    assert "differ in their Unicode form alone are one" in told(listing)


def test_measurements_are_refused_and_grades_are_told_of(root: Path) -> None:
    text = refused(with_labels(root, [f"{i / 7:.3f}" for i in range(16)]))
    assert "the labels are numbers (0.143 and others), 16 different ones for 16 images" in text
    listing = read(with_labels(root, ["1.5", "2.0"]))
    assert "Labels are numbers with fractions (1.5 and others): each of the 2 is" in told(listing)
    assert "numbers" not in told(read(with_labels(root, ["0", "1", "7"])))


@pytest.mark.parametrize("several", ["x|y", "x;y", "x | z"])
def test_labels_of_several_classes_are_refused(root: Path, several: str) -> None:
    text = refused(with_labels(root, ["x", several, "y", "z"]))
    assert f"label {several!r} names several classes" in text


@pytest.mark.parametrize("several", ["[0, 1]", "['x', 'y']", "{x}"])
def test_lists_as_labels_are_refused(several: str) -> None:
    with pytest.raises(DataError, match="names several classes"):
        labels.check({several: 2, "[1]": 3}, {several: 4, "[1]": 4}, "list.csv")


def test_names_with_commas_are_told_of_where_their_parts_recur() -> None:
    def check(*names: str) -> tuple[str, ...]:
        return labels.check(dict.fromkeys(names, 2), dict.fromkeys(names, 5), "list.csv")

    (line,) = check("x,y", "x", "y")
    assert "'x,y': each is taken for one class of its own" in line
    assert check("tench, Tinca tinca", "goldfish, Carassius auratus", "a|b") == ()
    assert check("Indigo Bunting", "Lazuli Bunting") == ()


def test_a_column_for_each_class_is_named(root: Path) -> None:
    path = root / "list.csv"
    path.write_text("image,cat,dog\na/000.png,1,0\nb/000.png,0,1\n")
    assert "has a column of 0 and 1 for each of 2 classes (cat, dog)" in refused(path)


# ---- dialects


def test_other_encodings_separators_and_slashes_are_the_same_list(root: Path) -> None:
    lines = [f"{c}/{i:03d}.png,{c}" for c in "ab" for i in range(8)]
    plain = "\n".join(["path,label", *lines]) + "\n"
    path = root / "list.csv"
    path.write_text(plain, encoding="utf-8")
    expected = read(path)
    windows = plain.replace("/", "\\").replace("\n", "\r\n")
    absolute = plain.replace("\na/", f"\n{root}/a/").replace("\nb/", f"\n{root}/b/")
    for content in (
        plain.encode("utf-16"),
        plain.encode("utf-8-sig"),
        plain.replace(",", ";").encode(),
        plain.replace(",", "\t").encode(),
        windows.encode(),
        windows.encode("utf-16"),
        plain.replace("\n", "\r").encode(),
        absolute.encode(),
    ):
        path.write_bytes(content)
        assert read(path).manifest == expected.manifest
        assert told(read(path)) == ""
    path.write_bytes(b"pa\rth,label\na/000.png,a\n")
    assert "line 1: new-line character seen in unquoted field" in refused(path)
    path.write_bytes(b"path,label\r\nC:\\data\\a\\000.png,a\r\n")
    assert "1 of 1 listed images are missing" in refused(path)


def test_files_whose_accents_have_the_other_form_are_found(make_folder) -> None:
    root = make_folder({CAFE["NFD"]: 4, "b": 4})
    lines = [f"{c}/{i:03d}.png,{c}" for c in (CAFE["NFC"], "b") for i in range(4)]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    listing = read(root / "list.csv")
    assert sum(len(part) for _, part in listing.splits()) == 8
    assert listing.class_names == ("b", CAFE["NFC"])


def test_a_name_in_other_letters_is_hinted_at(root: Path) -> None:
    path = root / "list.csv"
    path.write_text("path,label\na/000.PNG,a\n")
    assert "There is '000.png': names must be the same to the letter" in refused(path)
    path.write_text("path,label\na/000,a\n")
    assert "There is '000.png'" in refused(path)


def test_pictures_that_no_line_names_are_counted(root: Path) -> None:
    lines = [f"{c}/{i:03d}.png,{c}" for c in "ab" for i in range(6)]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    assert told(read(root / "list.csv")) == (
        "Left aside: 4 pictures beside the listed ones that no line names (first 'a/006.png')."
    )


def test_one_file_under_two_spellings_is_refused(root: Path) -> None:
    path = root / "list.csv"
    path.write_text("path,label\na/000.png,a\na\\000.png,b\n")
    assert "lines 2 and 3: both are 'a/000.png'" in refused(path)


def test_entries_say_which_column_split_them() -> None:
    text = "path,label,set\na.png,x,train\nb.png,x,test\n"
    found = tables.read_entries(text, "list.csv", ",")
    assert (found.column, [entry.split for entry in found.entries]) == ("set", ["train", "test"])
