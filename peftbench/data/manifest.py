"""The manifest of a prepared data set: what every file of it was, and whether it still is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.caches import cache_dir
from peftbench.data.files import each
from peftbench.data.images import BESIDE, file_digest, replaced
from peftbench.data.listing import Home, Listing, SplitList, rollup_of
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """A data set as it was prepared; `rollup` is the hash by which runs know it."""

    name: str
    title: str
    suite: str
    suite_version: int
    group: str
    layout: str
    licence: str
    source: str
    notes: tuple[str, ...]
    known_issues: tuple[str, ...]
    class_names: tuple[str, ...]
    images: str | None  # folder below which the names are found; None: not one file an image
    lists: Mapping[str, str]  # SHA-256 of the files that say what is in which split
    splits: Mapping[str, SplitList]
    extra: str
    rollup: str

    @classmethod
    def of(cls, spec: DatasetSpec, listing: Listing) -> Manifest:
        """What a reader has listed; its lists are hashed now."""
        home = listing.home
        images, lists = None, {}
        if home is not None:
            images = _image_folder(home)
            lists = {path: file_digest(home.folder / path) for path in home.lists}
        return cls(
            name=spec.name,
            title=listing.title,
            suite=listing.suite,
            suite_version=listing.suite_version,
            group=listing.group,
            layout=home.layout if home else "",
            licence=listing.licence,
            source=listing.source,
            notes=listing.notes,
            known_issues=spec.facts.oddities,
            class_names=listing.class_names,
            images=images,
            lists=lists,
            splits=listing.covered(),
            extra=listing.extra,
            rollup=listing.manifest,
        )

    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {split: len(part) for split, part in self.splits.items()}

    def present(self) -> dict[str, int]:
        """Classes with at least one image in each split."""
        return {split: len(set(part.labels)) for split, part in self.splits.items()}

    def counts(self) -> dict[str, list[int]]:
        """Images of each class, by split."""
        return {
            split: np.bincount(part.labels, minlength=len(self.class_names)).tolist()
            for split, part in self.splits.items()
        }

    def copies_in_test(self) -> int:
        """How many test images are byte for byte also in another split."""
        others = {
            digest
            for split, part in self.splits.items()
            if split != "test"
            for digest in part.digests
        }
        tested = self.splits["test"].digests if "test" in self.splits else ()
        return sum(digest in others for digest in tested)

    def encodings(self) -> dict[str, int]:
        """Images by the ending of their names, the most common first."""
        counts: dict[str, int] = {}
        for part in self.splits.values():
            for name in part.names:
                suffix = Path(name).suffix.lower().lstrip(".") or "array"
                counts[suffix] = counts.get(suffix, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def list_files(self, home: Path) -> list[tuple[Path, str]]:
        """The files that say what is in which split, with their hashes."""
        return [(home / relative, digest) for relative, digest in self.lists.items()]

    def image_files(self, home: Path) -> list[tuple[Path, str]]:
        """The files of the images, with their hashes; none where they are not files."""
        if self.images is None:
            return []
        return [
            (home / self.images / name, digest)
            for part in self.splits.values()
            for name, digest in zip(part.names, part.digests, strict=True)
        ]

    def to_text(self) -> str:
        """JSON with one line for each image."""
        head = {
            "format": FORMAT,
            "name": self.name,
            "title": self.title,
            "suite": self.suite,
            "suite_version": self.suite_version,
            "group": self.group,
            "layout": self.layout,
            "licence": self.licence,
            "source": self.source,
            "notes": self.notes,
            "oddities": self.known_issues,
            "sizes": self.sizes(),
            "classes_present": self.present(),
            "rollup": self.rollup,
            "extra": self.extra,
            "images": self.images,
            "lists": dict(self.lists),
            "classes": self.class_names,
        }
        splits = []
        for split, part in self.splits.items():
            rows = zip(part.names, part.labels, part.digests, strict=True)
            lines = ",\n".join(json.dumps(row) for row in rows)
            splits.append(f"{json.dumps(split)}: [\n{lines}\n]")
        body = json.dumps(head, indent=1).removesuffix("\n}")
        return f'{body},\n "splits": {{\n' + ",\n".join(splits) + "\n}}\n"

    @classmethod
    def from_text(cls, text: str, where: str) -> Manifest:
        """The manifest that `to_text` wrote; `DataError` where it was changed since."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r} is not {FORMAT}")
            splits = {split: SplitList.of(rows) for split, rows in raw["splits"].items()}
            manifest = cls(
                name=raw["name"],
                title=raw["title"],
                suite=raw["suite"],
                suite_version=raw["suite_version"],
                group=raw["group"],
                layout=raw["layout"],
                licence=raw["licence"],
                source=raw["source"],
                notes=tuple(raw["notes"]),
                known_issues=tuple(raw["oddities"]),
                class_names=tuple(raw["classes"]),
                images=raw["images"],
                lists=raw["lists"],
                splits=splits,
                extra=raw["extra"],
                rollup=raw["rollup"],
            )
            if rollup_of(splits, manifest.extra) != manifest.rollup:
                raise ValueError("its images do not have its roll-up hash")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"The manifest {where} is damaged: {reason}. Remove it and prepare the data set "
                "again."
            ) from error
        return manifest


def file_name(spec: DatasetSpec) -> str:
    """Of the manifest: one folder may hold several data sets."""
    shots = f"-{spec.shots}shot" if spec.shots is not None else ""
    return f"{spec.name.replace('/', '-')}{shots}.json"


def places(home: Path, spec: DatasetSpec) -> tuple[Path, Path]:
    """Where the manifest is looked for: beside the data, else in the user's cache."""
    key = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
    name = file_name(spec)
    return home / BESIDE / name, cache_dir() / "manifests" / key / name


def write(manifest: Manifest, home: Path, spec: DatasetSpec) -> Path:
    """Put the manifest beside the data, or into the user's cache where that cannot be written."""
    error: OSError | None = None
    for path in places(home, spec):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as temporary:
                temporary.write_text(manifest.to_text(), encoding="utf-8")
            return path
        except OSError as e:
            error = e
    raise DataError(f"Cannot write the manifest of {spec.name}: {error}.") from error


def stored(home: Path, spec: DatasetSpec) -> Manifest | None:
    """The manifest of a data set, or `None` where it was never prepared."""
    path = _place(home, spec)
    return None if path is None else _read(path)


def _place(home: Path, spec: DatasetSpec) -> Path | None:
    return next((path for path in places(home, spec) if path.is_file()), None)


def _read(path: Path) -> Manifest:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"Cannot read the manifest {path}: {reason}. Remove it.") from error
    return Manifest.from_text(text, str(path))


def check(spec: DatasetSpec, listing: Listing) -> None:
    """`DataError` where a prepared data set is no longer what its manifest says."""
    if listing.home is None or not spec.group_copies:  # which it may have been prepared with
        return
    path = _place(listing.home.folder, spec)
    if path is None or _says(path, listing.manifest):
        return
    known = _read(path)
    if known.rollup == listing.manifest or known.extra != listing.extra:
        return
    raise DataError(
        f"{spec.name} in {listing.home.folder} is not what it was when it was prepared: "
        f"{difference(known, listing) or 'its splits differ'}. Restore it, or take it as it is "
        f"now: {command(spec)}"
    )


def _says(path: Path, rollup: str) -> bool:
    """Whether a manifest has this roll-up hash, by its head: a million images may follow."""
    try:
        with path.open(encoding="utf-8") as file:
            head = next((line for line in file if line.startswith(' "rollup": ')), "")
    except (OSError, UnicodeDecodeError):
        return False
    return head.strip() == f'"rollup": "{rollup}",'


def command(spec: DatasetSpec) -> str:
    """What writes the manifest of a data set."""
    root = f" --root {spec.root}" if spec.reader == "folder" else ""
    return f"peftbench data prepare {spec.name}{root}"


def difference(known: Manifest, listing: Listing) -> str | None:
    """The first thing in which a listing differs from a manifest, if there is one."""
    if known.class_names != listing.class_names:
        counts = f"{len(listing.class_names)} classes, and {len(known.class_names)} were prepared"
        pairs = zip(known.class_names, listing.class_names, strict=False)
        first = next((f"; first {old!r}, now {new!r}" for old, new in pairs if old != new), "")
        return f"it has {counts}{first}"
    now = listing.covered()
    for split, part in known.splits.items():
        if split not in now:
            return f"it has no {split}"
        rows = {
            name: (label, digest)
            for name, label, digest in zip(
                now[split].names, now[split].labels, now[split].digests, strict=True
            )
        }
        for name, label, digest in zip(part.names, part.labels, part.digests, strict=True):
            if name not in rows:
                return f"{name} is no longer in {split}"
            if rows[name][0] != label:
                return f"{name} in {split} has label {rows[name][0]}, and had {label}"
            if rows[name][1] != digest:
                return f"the bytes of {name} in {split} have changed"
        added = set(rows) - set(part.names)
        if added:
            return f"{min(added)} in {split} was not there"
        if len(now[split]) != len(part):
            return f"{split} has {len(now[split])} rows, and had {len(part)}"
    return None


def first_wrong(
    wanted: Sequence[tuple[Path, str]], intact: set[tuple[Path, str]], title: str
) -> str | None:
    """The first of the files that is absent or does not have its SHA-256.

    All bytes are read, whatever the times of the files say, but for those that are in `intact`
    already, to which all others are added when none is wrong.
    """
    wanted = [entry for entry in dict.fromkeys(wanted) if entry not in intact]

    def wrong(entry: tuple[Path, str]) -> str | None:
        path, digest = entry
        if not path.is_file():
            return f"{path} is missing"
        size = path.stat().st_size
        return None if file_digest(path) == digest else f"{path} ({size:,} bytes) has changed"

    for text in each(wrong, wanted, title):
        if text is not None:
            return text
    intact.update(wanted)
    return None


def _image_folder(home: Home) -> str | None:
    root = home.pictures.path(".")
    return None if root is None else os.path.relpath(root, home.folder)
