"""Small raw archives in the formats of the true ones, with what VTAB-1k makes of them.

Expected orders and checksums are computed here in the plainest way, never with the code under test;
`test_raw.py` holds both against TensorFlow Datasets.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from make_raw_order import GOLDEN
from PIL import Image
from scipy.io import savemat

from peftbench.data.raw.base import SplitCounts

COUNTS = SplitCounts(train=6, val=3)
CLASSES: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))["classes"]


@dataclass(frozen=True)
class Row:
    """A record: its key, its class, and its pixels or the bytes of its file."""

    key: str | bytes | int
    label: int
    content: np.ndarray | bytes


Expected = dict[str, list[Row]]  # by the names that vtab-1k has


def ordered(split: str, rows: Sequence[Row]) -> list[Row]:
    """In the order of TensorFlow Datasets: by MD5 of the split and the key as a large number."""

    def number(row: Row) -> int:
        key = row.key if isinstance(row.key, bytes) else str(row.key).encode()
        return int(hashlib.md5(split.encode() + key).hexdigest(), 16)

    return sorted(rows, key=number)


def expected(train: list[Row], val: list[Row], test: list[Row]) -> Expected:
    """From portions that are in order already."""
    return {"train800": train[: COUNTS.train], "val200": val[: COUNTS.val], "test": test}


def rows_of(target: Path, name: str) -> list[tuple[Path, int]]:
    """Files and classes of a list of the vtab-1k folder."""
    lines = (target / f"{name}.txt").read_text().splitlines()
    return [(target / path, int(label)) for path, label in (line.split(" ") for line in lines)]


def noise(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed)).save(buffer, format=kind)
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, axis=2)


DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"


def dsprites(folder: Path, column: int, label: Callable[[int], int], count: int = 41) -> Expected:
    """With metadata that only a pickle can hold, as in the published file."""
    generator = np.random.default_rng(0)
    factors = np.stack([generator.integers(0, n, count) for n in (1, 3, 6, 40, 32, 32)], axis=1)
    images = generator.integers(0, 2, (count, 64, 64), dtype=np.uint8)
    metadata = np.array({"author": "nobody"}, dtype=object)
    np.savez_compressed(folder / DSPRITES, imgs=images, latents_classes=factors, metadata=metadata)
    rows = [
        Row(i, label(int(factors[i, column])), grey(images[i] * np.uint8(255)))
        for i in range(count)
    ]
    rows = ordered("train", rows)
    return expected(rows[:32], rows[32:36], rows[36:])  # 80 and 10 % of 41, rounded down


def dsprites_hdf5(folder: Path) -> None:
    """The arrays of the .npz as the .hdf5 has them, in its place."""
    import h5py

    with (
        np.load(folder / DSPRITES) as archive,
        h5py.File((folder / DSPRITES).with_suffix(".hdf5"), "w") as file,
    ):
        file["imgs"] = archive["imgs"]
        file["latents/classes"] = archive["latents_classes"]
    (folder / DSPRITES).unlink()


def matrix(array: np.ndarray) -> bytes:
    """The binary format of SmallNORB: at least three sizes, also for fewer dimensions."""
    magic = {np.dtype("uint8"): 0x1E3D4C55, np.dtype("int32"): 0x1E3D4C54}[array.dtype]
    sizes = list(array.shape) + [1] * (3 - array.ndim)
    head = struct.pack(f"<II{len(sizes)}I", magic, array.ndim, *sizes)
    return head + array.astype(array.dtype.newbyteorder("<")).tobytes()


NORB = ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing")


def smallnorb(folder: Path, column: int, divisor: int) -> Expected:
    """Training files as they are, testing files packed."""
    parts = {}
    for seed, (split, stem) in enumerate(zip(("train", "test"), NORB, strict=True)):
        generator = np.random.default_rng(seed)
        pairs = generator.integers(0, 256, (13, 2, 96, 96), dtype=np.uint8)
        sizes = (10, 9, 18, 6)
        info = np.stack([generator.integers(0, n, 13) for n in sizes], axis=1).astype(np.int32)
        info[:, 2] *= 2  # azimuths are even
        for kind, array in (("dat", pairs), ("info", info)):
            if split == "train":
                put(folder / f"{stem}-{kind}.mat", matrix(array))
            else:
                put(folder / f"{stem}-{kind}.mat.gz", gzip.compress(matrix(array), 1))
        rows = [Row(i, int(info[i, column]) // divisor, grey(pairs[i, 0])) for i in range(13)]
        parts[split] = ordered(split, rows)
    return expected(parts["train"], parts["test"][:6], parts["test"][6:])


def scene(name: str, depths: Sequence[float]) -> dict:
    return {
        "image_filename": name,
        "split": name.split("_")[1],
        "directions": {"left": [-0.65, -0.75, 0.0]},
        "relationships": {"left": [[] for _ in depths]},
        "objects": [
            {"shape": "cube", "size": "large", "pixel_coords": [11, 12, depth], "rotation": 1.5}
            for depth in depths
        ],
    }


def clevr(folder: Path, label: Callable[[Sequence[float]], int]) -> Expected:
    root = folder / "CLEVR_v1.0"
    parts = {}
    for split, part, count in (("train", "train", 33), ("validation", "val", 5)):
        generator = np.random.default_rng(count)
        rows, scenes = [], []
        for number in range(count):
            name = f"CLEVR_{part}_{number:06d}.png"
            depths = generator.uniform(7.2, 13.0, generator.integers(3, 11)).round(3).tolist()
            content = encoded(number + 100 * count, "PNG")
            put(root / "images" / part / name, content)
            scenes.append(scene(name, depths))
            rows.append(Row(name, label(depths), content))
        text = json.dumps({"info": {"split": part}, "scenes": scenes})
        put(root / "scenes" / f"CLEVR_{part}_scenes.json", text)
        parts[split] = ordered(split, rows)
    return expected(parts["train"][:29], parts["train"][29:], parts["validation"])  # 90 % of 33


def kitti_line(kind: str, z: float) -> str:
    return f"{kind} 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 {z} -1.56\n"


def kitti(folder: Path, parts: dict[str, list[int]], devkit: tuple[str, str]) -> Expected:
    """`parts` are the images of the three splits that the devkit leads to."""
    put(folder / "mapping" / "train_rand.txt", devkit[0])
    put(folder / "mapping" / "train_mapping.txt", devkit[1])
    chosen = {}
    for split, ids in parts.items():
        rows = []
        for image in ids:
            name, label = f"{image:06d}", image % 4
            z = (7.5, 19.0, 45.0, 3.0)[label]
            kind = "Cyclist" if label == 3 else ("Car", "Van", "Truck")[image % 3]
            text = kitti_line(kind, z) + kitti_line("DontCare", -1000) + kitti_line("Tram", 1.0)
            put(folder / "training" / "label_2" / f"{name}.txt", text)
            content = encoded(image, "PNG")
            put(folder / "training" / "image_2" / f"{name}.png", content)
            rows.append(Row(f"{name}.png", label, content))
        chosen[split] = ordered(split, rows)
    return expected(chosen["train"], chosen["validation"], chosen["test"])


def checksum(data: bytes) -> int:
    """CRC-32C bit by bit, masked as in TFRecord files."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    state ^= 0xFFFFFFFF
    return ((state >> 15 | state << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", checksum(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes(data) + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


Feature = bytes | int | float | list[bytes] | list[int] | list[float]


def example(features: Mapping[str, Feature], packed: bool = True) -> bytes:
    """A tf.train.Example; lists of numbers packed or not, which are both valid.

    An empty list is one of float, as that of a CLEVR scene without objects would be.
    """
    entries = b""
    for name, feature in features.items():
        values = feature if isinstance(feature, list) else [feature]
        if values and isinstance(values[0], bytes):
            kind, content = 1, b"".join(field(1, value) for value in values)
        elif values and isinstance(values[0], int):
            kind, numbers, tag = 3, [varint(value) for value in values], varint(1 << 3)
        else:
            kind, numbers = 2, [struct.pack("<f", value) for value in values]
            tag = varint(1 << 3 | 5)
        if kind != 1 and packed:
            content = field(1, b"".join(numbers)) if numbers else b""
        elif kind != 1:
            content = b"".join(tag + number for number in numbers)
        entries += field(1, field(1, name.encode()) + field(2, field(kind, content)))
    return field(1, entries)


def dmlab(folder: Path) -> Expected:
    """Two shards of train, one of the others."""
    parts = {}
    for split, count in (("train", 9), ("validation", 4), ("test", 5)):
        rows, shards = [], [b"", b""]
        for number in range(count):
            key, content = b"%s/frame %d" % (split.encode(), number), encoded(number)
            label = number % 6
            features = {"filename": key, "image": content, "label": label}
            shards[number % 2] += record(example(features, packed=number % 3 > 0))
            rows.append(Row(key, label, content))
        if split == "train":
            for index, shard in enumerate(shards):
                put(folder / f"dmlab-{split}.tfrecord-{index:05d}-of-00002", shard)
        else:
            put(folder / f"dmlab-{split}.tfrecord", b"".join(shards))
        parts[split] = ordered(split, rows)
    return expected(*parts.values())


def cifar100(folder: Path) -> Expected:
    parts = {}
    for split, count in (("train", 45), ("test", 7)):
        rows, table = [], b""
        for number in range(count):
            pixels = noise(number + count, 32, 32)
            label = (7 * number) % 100
            table += bytes([label // 5, label]) + pixels.transpose(2, 0, 1).tobytes()
            rows.append(Row(number, label, pixels))
        put(folder / f"{split}.bin", table)
        parts[split] = ordered(split, rows)
    return expected(parts["train"][:40], parts["train"][40:], parts["test"])


def svhn(folder: Path) -> Expected:
    parts = {}
    for split, count in (("train", 39), ("test", 7)):
        images = np.stack([noise(number + count, 32, 32) for number in range(count)], axis=3)
        digits = [1 + number % 10 for number in range(count)]
        variables = {"X": images, "y": np.array(digits, dtype=np.uint8).reshape(-1, 1)}
        savemat(folder / f"{split}_32x32.mat", variables, do_compression=True)
        rows = [Row(i, 0 if d == 10 else d, images[..., i]) for i, d in enumerate(digits)]
        parts[split] = ordered(split, rows)
    return expected(parts["train"][:35], parts["train"][35:], parts["test"])


def dtd(folder: Path) -> Expected:
    parts = {}
    for split, name, count in (
        ("train", "train1", 47),
        ("validation", "val1", 5),
        ("test", "test1", 6),
    ):
        rows = []
        for number in range(count):
            title = CLASSES["dtd"][number]
            key, content = f"{title}/{title}_{count:04d}.jpg", encoded(number + count)
            put(folder / "dtd" / "images" / key, content)
            rows.append(Row(key, number, content))
        put(folder / "dtd" / "labels" / f"{name}.txt", "".join(f"{row.key}\n" for row in rows))
        parts[split] = ordered(split, rows)
    return expected(*parts.values())


def flowers102(folder: Path) -> Expected:
    labels = [1 + (5 * number) % 102 for number in range(18)]
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})
    ids = {"trnid": [3, 1, 9, 11, 2, 4, 18], "valid": [5, 17, 6, 7], "tstid": [8, 10, 12, 13, 14]}
    savemat(folder / "setid.mat", {key: np.array([numbers]) for key, numbers in ids.items()})
    parts = []
    for split, numbers in zip(("train", "validation", "test"), ids.values(), strict=True):
        rows = []
        for number in numbers:
            name, content = f"image_{number:05d}.jpg", encoded(number)
            put(folder / "jpg" / name, content)
            rows.append(Row(name, labels[number - 1] - 1, content))
        parts.append(ordered(split, rows))
    return expected(*parts)


def pets(folder: Path) -> Expected:
    parts = {}
    for split, name, count in (("train", "trainval", 22), ("test", "test", 5)):
        rows, lines = [], ""
        for number in range(count):
            stem, content = f"British_Shorthair_{name}_{number}", encoded(number + count)
            put(folder / "images" / f"{stem}.jpg", content)
            lines += f"{stem} {1 + number % 37} 2 {number}\n"
            rows.append(Row(f"{stem}.jpg", number % 37, content))
        put(folder / "annotations" / f"{name}.txt", lines)
        parts[split] = ordered(split, rows)
    return expected(parts["train"][:17], parts["train"][17:], parts["test"])  # 80 % of 22


def class_folders(folder: Path, root: str, classes: Sequence[str], each: int) -> Expected:
    """Of their records in order, 60 % are train, 20 % val and the rest test."""
    rows = []
    for label, title in enumerate(classes):
        for number in range(1, each + 1):
            name, content = f"{title}_{number}.jpg", encoded(100 * label + number)
            put(folder / root / title / name, content)
            rows.append(Row(f"{title}_{name}", label, content))
    rows = ordered("train", rows)
    border, end = 60 * len(rows) // 100, 60 * len(rows) // 100 + 20 * len(rows) // 100
    return expected(rows[:border], rows[border:end], rows[end:])


def patch_camelyon(folder: Path) -> Expected:
    import h5py

    parts = {}
    for split, part, count in (
        ("train", "train", 8),
        ("validation", "valid", 4),
        ("test", "test", 5),
    ):
        images = np.stack([noise(number + count, 96, 96) for number in range(count)])
        labels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) % 2
        for kind, array in (("x", images), ("y", labels)):
            path = folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset(kind, data=array, compression="gzip")
        rows = [Row(f"{part}_{i}", i % 2, images[i]) for i in range(count)]
        parts[split] = ordered(split, rows)
    return expected(*parts.values())


def tfds(
    folder: Path,
    name: str,
    config: str,
    version: str,
    splits: Mapping[str, Sequence[Mapping[str, Feature]]],
) -> Path:
    """A version that TensorFlow Datasets has prepared below `folder`; the folder of that version.

    Each split is four shards, of which the first and the third are empty.
    """
    place = folder / name / config / version
    listed = []
    for split, rows in splits.items():
        lengths = [0, len(rows) // 3, 0, len(rows) - len(rows) // 3]
        start = 0
        for shard, length in enumerate(lengths):
            stored = (example(row, packed=shard == 3) for row in rows[start : start + length])
            path = place / f"{name}-{split}.tfrecord-{shard:05d}-of-00004"
            put(path, b"".join(map(record, stored)))
            start += length
        listed.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "12345",
                "shardLengths": [str(length) for length in lengths],
            }
        )
    info = {
        "citation": "nobody",
        "fileFormat": "tfrecord",
        "moduleName": f"tensorflow_datasets.{name}",
        "name": name,
        "splits": listed,
        "version": version,
        **({"configName": config} if config else {}),
    }
    put(place / "dataset_info.json", json.dumps(info, indent=2))
    put(place / "features.json", "{}")
    return place
