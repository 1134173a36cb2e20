"""Promises of lists of paths and labels: columns, splits, order, and errors that name a line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from peftbench import data
from peftbench.data import tables
from peftbench.data.listing import Listing
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Phase, Preprocessing


def spec(root: Path | str, **changes: object) -> DatasetSpec:
    return replace(DatasetSpec(name="folder", reader="folder", root=str(root)), **changes)


def read(path: Path, **changes: object) -> Listing:
    return data.READERS["folder"](spec(path, **changes))


def refused(text: str, delimiters: str = ",;\t|") -> str:
    """The one-line message with which a list is refused."""
    with pytest.raises(DataError) as caught:
        tables.parse(text, "labels.csv", delimiters)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def lines_of(root: Path) -> list[str]:
    """A line for each image below `root`, its folder as the label."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return [f"{name},{name.split('/')[-2]}" for name in names]


@pytest.mark.parametrize("path", tables.PATH_COLUMNS)
@pytest.mark.parametrize("label", tables.LABEL_COLUMNS)
def test_columns_are_known_by_any_usual_name_and_others_are_ignored(path: str, label: str) -> None:
    text = f"id,{label.title()}, {path} ,notes\n7,cat,a/1.png,x\n"
    assert tables.parse(text, "labels.csv", ",") == [tables.TableEntry(2, "a/1.png", "cat", "all")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_told_by_the_header(delimiter: str) -> None:
    text = "path,label,split\n'a, b; c.png',cat,train\n".replace("'", '"')
    if delimiter != ",":
        text = text.replace(",", delimiter).replace(f"a{delimiter}", "a,")
    expected = [tables.TableEntry(2, "a, b; c.png", "cat", "train")]
    assert tables.parse(text, "labels.csv", tables.DELIMITERS[".csv"]) == expected


def test_a_tsv_is_split_at_tabs_only() -> None:
    assert tables.parse("path\tlabel\na,1.png\tcat\n", "x", "\t")[0].name == "a,1.png"
    assert "needs a header" in refused("path,label\na.png,cat\n", "\t")


def test_empty_lines_and_quoted_line_breaks_do_not_shift_the_line_numbers() -> None:
    text = 'path,label,remark\na.png,cat,"two\nlines"\n\n,,\nb.png,dog,\n'
    entries = tables.parse(text, "labels.csv", ",")
    assert [(e.line, e.name) for e in entries] == [(3, "a.png"), (6, "b.png")]


@pytest.mark.parametrize("name", ["val", "valid", "Validation "])
def test_val_goes_by_three_names(name: str) -> None:
    (entry,) = tables.parse(f"path,label,split\na.png,cat,{name}\n", "labels.csv", ",")
    assert entry.split == "val"


def test_a_list_without_a_header_is_told_what_one_looks_like() -> None:
    assert refused("a/1.png,cat\na/2.png,dog\n") == (
        "labels.csv needs a header with a path column (path, image, file, filename, file_name, "
        "filepath) and a label column (label, class, target, category); its first line is "
        "'a/1.png,cat'. Let it begin with two lines like 'path,label' and 'images/0001.jpg,robin'."
    )
    assert "its first line is ''" in refused("")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,file,label\n", "has 2 path columns: path, file. Rename all but the one"),
        ("path,label,class\n", "has 2 label columns: label, class. Rename all but the one"),
        ("path,label\n", "has a header and no image below it"),
        ("path,label\na.png\n", "line 2: 2 cells are in the header and 1 here"),
        ("path,label\na.png,cat\nb.png,cat,dog\n", "line 3: 2 cells are in the header and 3 here"),
        ("path,label\n,cat\n", "line 2: no path. Fill the cell."),
        ("path,label\na.png, \n", "line 2: no label. Fill the cell."),
        ("path,label,split\na.png,cat,eval\n", "line 2: 'eval' is no split. Use one of: train, "),
        ("path,label\n/etc/a.png,cat\n", "line 2: '/etc/a.png' leads out of the data set"),
        ("path,label\na/../../b.png,cat\n", "line 2: 'a/../../b.png' leads out of the data set"),
        ('path,label\n"a.png,cat\n', "line 2: unexpected end of data. Repair the line."),
        ("path,label\na.png,cat\na.png,cat\n", "lines 2 and 3: 'a.png' stands there twice. "),
        (
            "path,label\na.png,cat\nb.png,cat\n./a.png,dog\n",
            "lines 2 and 4: 'a.png' stands there twice with other labels, 'cat' and 'dog'. "
            "Remove one of the two lines.",
        ),
    ],
    ids=lambda text: text if " " in text else "",
)
def test_a_wrong_line_is_named(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_a_list_of_a_folder_is_the_same_data_set_as_the_folder(
    make_folder, small: Preprocessing
) -> None:
    root = make_folder({"dog": 10, "cat": 20})
    expected = data.load(spec(root), Phase.TUNE, small)
    table = write(root / "labels.csv", "path,label", *reversed(lines_of(root)))
    found = data.load(spec(table), Phase.TUNE, small)
    assert found.class_names == ("cat", "dog")
    assert found.manifest == expected.manifest
    assert found.train.names == expected.train.names
    assert np.array_equal(found.train.images, expected.train.images)
    # 70 % train, 10 % val of 20 and 10
    assert np.bincount(found.train.labels).tolist() == [14, 7]
    assert np.bincount(found.report.labels).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),  # numbers by value
        (["10", "9", "b"], ("10", "9", "b")),  # words by bytes
        (["Zoo", "apple", "ähre"], ("Zoo", "apple", "ähre")),
    ],
)
def test_integers_sort_as_numbers_and_words_by_bytes(make_folder, labels, expected) -> None:
    root = make_folder({"images": 9})
    lines = [f"images/{i:03d}.png,{labels[i % 3]}" for i in range(9)]
    (root / "l.csv").write_bytes(("\ufeffpath,label\r\n" + "\r\n".join(lines)).encode("utf-8"))
    listing = read(root)  # one folder beside one list: the list is meant
    assert listing.class_names == expected
    assert listing.source == str(root / "l.csv")


def split_lines(val: str | None = "val") -> list[str]:
    """a: 4 train; b: 4 train; two of each in val and test."""
    parts = [("train", range(4)), (val, range(4, 6)), ("test", range(6, 8))]
    return [
        f"{name}/{i:03d}.png,{name},{split}"
        for name in "ab"
        for split, rows in parts
        if split
        for i in rows
    ]


def test_a_split_column_is_taken_as_it_is(make_folder, small: Preprocessing) -> None:
    root = make_folder({"a": 8, "b": 8})
    table = write(root / "labels.csv", "path,label,split", *split_lines())
    assert data.load(spec(table), Phase.TUNE, small).report.names == (
        "a/004.png", "a/005.png", "b/004.png", "b/005.png",
    )  # fmt: skip
    final = data.load(spec(table), Phase.FINAL, small)
    assert final.report.names == ("a/006.png", "a/007.png", "b/006.png", "b/007.png")
    assert len(final.train) == 12


def test_a_missing_val_is_cut_from_train_and_a_missing_test_is_refused(make_folder) -> None:
    root = make_folder({"a": 8, "b": 8})
    table = write(root / "labels.csv", "path,label,split", *split_lines(val=None))
    listing = read(table, val_fraction=0.25)
    assert (len(listing.train), len(listing.val), len(listing.test)) == (6, 2, 4)
    assert {name[2:] for name in listing.test.names} == {"006.png", "007.png"}
    with pytest.raises(DataError, match=r"val_fraction=0: .*labels.csv has no line of split val"):
        read(table, val_fraction=0.0)
    write(table, "path,label,split", *(line for line in split_lines() if "test" not in line))
    with pytest.raises(DataError, match=r"has train \(8\), val \(4\) in its column split, but no "):
        read(table)


def test_a_class_that_train_lacks_is_refused(make_folder) -> None:
    root = make_folder({"a": 8, "b": 8})
    table = write(root / "labels.csv", "path,label,split", *split_lines(), "b/000.png,c,test")
    text = table.read_text().replace("b/000.png,b,train\n", "")
    table.write_text(text)
    with pytest.raises(DataError, match=r"Class 'c' is in test but not in train of .*labels.csv"):
        read(table)


def test_missing_files_are_counted_and_the_first_is_named_with_its_line(make_folder) -> None:
    root = make_folder({"a": 3, "b": 3})
    lines = [*lines_of(root)[:4], "b/7.png,b", "b/8.png,b"]
    table = write(root / "labels.csv", "path,label", *lines)
    with pytest.raises(DataError, match=r"line 6: 'b/7.png' is no file in .*images; 2 of 6 listed"):
        read(table)


def test_a_root_with_images_and_one_list_is_read_by_its_list(make_folder) -> None:
    root = make_folder({".": 6})
    lines = [f"{i:03d}.png\t{'cat' if i % 2 else 'dog'}" for i in range(6)]
    write(root / "labels.tsv", "file\tclass", *lines)
    write(root / "readme.txt", "nothing")
    assert read(root).class_names == ("cat", "dog")
    write(root / "more.csv", "path,label")
    with pytest.raises(DataError, match=r"has 2 lists: labels.tsv, more.csv. Set dataset.root to"):
        read(root)
    (root / "more.csv").unlink()
    for part in ("train", "test"):  # folders of splits hold no classes either
        (root / part).mkdir()
        shutil.copy(root / "000.png", root / part)
    assert read(root).class_names == ("cat", "dog")


def test_a_list_beside_class_folders_is_not_read(make_folder) -> None:
    root = make_folder({"cat": 3, "dog": 3})
    write(root / "notes.csv", "anything")
    assert read(root).class_names == ("cat", "dog")


def test_a_list_in_another_encoding_is_refused(make_folder) -> None:
    table = make_folder({"a": 3}) / "labels.csv"
    table.write_bytes("path,label\na/000.png,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8: byte 24 is 0xe9\. Save it as UTF-8\."):
        read(table)
