"""One data set made ready: fetched, unpacked, converted, checked image by image, and listed.

What is on the disk already, in any layout that is read, is only checked and listed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peftbench.data import cards, images, manifest, pixels, public, shifts
from peftbench.data.download import Unreachable, fetch
from peftbench.data.files import each, put
from peftbench.data.listing import READERS, Listing
from peftbench.data.manifest import Manifest
from peftbench.data.sources import Source
from peftbench.data.unpack import unpack
from peftbench.errors import DataError
from peftbench.registry import unknown_name
from peftbench.spec import DatasetSpec, Preprocessing

SHOTS = (1, 2, 4, 8, 16)
NAMED = 20  # broken images that an error names; it counts the others
DONE = f"{images.BESIDE}/unpacked.json"  # which archives have been unpacked into a folder


@dataclass(frozen=True)
class Ready:
    """A data set that is ready to be run."""

    name: str
    home: Path | None  # None where it is shipped
    manifests: tuple[Manifest, ...]
    remarks: tuple[str, ...]  # what a person should know


class Manual(DataError):
    """A person has to fetch the data set; the message holds the steps."""


def prepare(
    spec: DatasetSpec,
    data_dir: Path,
    sources: Mapping[str, Source],
    *,
    source: str | None = None,
    raw: Path | None = None,
    decode: bool = True,
) -> Ready:
    """Make a data set ready and write its manifest.

    Args:
        spec: `spec.root` is its folder, or the one for all data.
        data_dir: where a source is unpacked.
        sources: all that are configured.
        source: the one to take; the first that `spec.facts` names unless given.
        raw: a folder that holds the unpacked original archives already, or, for VTAB-1k, what
            TensorFlow Datasets has prepared of them.
        decode: whether every image is decoded, so that broken ones are known now.

    Raises:
        Manual: nobody but a person can fetch it.
        DataError: what is there is incomplete or broken, or a host cannot be reached.
    """
    remarks: list[str] = []
    if spec.reader == "mini":
        listing = READERS[spec.reader](spec)
        return Ready(spec.name, None, (Manifest.of(spec, listing),), ("shipped",))
    if spec.reader not in ("public", "shift"):
        home_of(spec)
    if spec.reader in ("public", "shift") and (
        source or raw or not _is_there(variants(spec)[0], sources, data_dir)
    ):
        remarks += _obtain(spec, data_dir, sources, source, raw)
    manifests = []
    home = None
    for variant in variants(spec):
        listing = listed(variant)
        assert listing.home is not None  # `home_of` has refused what has none
        home = listing.home.folder
        if decode:
            remarks += check_images(spec.name, listing)
            decode = False  # lists of other shots name the same images
        prepared = Manifest.of(variant, listing)
        manifest.write(prepared, home, variant)
        manifests.append(prepared)
    return Ready(spec.name, home, tuple(manifests), tuple(dict.fromkeys(remarks)))


def variants(spec: DatasetSpec) -> list[DatasetSpec]:
    """A data set, or one for each number of shots that there are lists of."""
    if spec.shots is None:
        return [spec]
    there = []
    for shots in SHOTS:
        variant = dataclasses.replace(spec, shots=shots, shot_seed=0)
        with contextlib.suppress(DataError):
            home_of(variant)
            there.append(variant)
    return there or [dataclasses.replace(spec, shot_seed=0)]


def listed(spec: DatasetSpec) -> Listing:
    """What the reader of a data set lists; of a shift set its test images."""
    if spec.reader == "shift":
        return shifts.list_shift(spec)
    return READERS[spec.reader](spec)


def home_of(spec: DatasetSpec) -> Path:
    """The folder of a data set, judged by names alone."""
    if spec.reader == "public":
        return public.find(spec).folder
    if spec.reader == "shift":
        return shifts.find_shift(spec)
    if spec.root:
        root = Path(spec.root).expanduser().absolute()
        return root.parent if root.is_file() else root  # a list of paths and labels
    if spec.reader == "folder":
        raise DataError(f"{spec.name} lies in no folder. Name one with --root DIR.")
    raise DataError(
        f"{spec.name} is fetched, kept and checked by its own library when a run reads it; there "
        f"is nothing to prepare. Run it: peftbench run dataset={spec.name} ..."
    )


def verify(spec: DatasetSpec, decode: bool = False) -> str:
    """Hold a data set against its manifest; a sentence if it is intact.

    Raises:
        DataError: names the first file that is wrong, or says that there is no manifest.
    """
    if spec.reader == "mini":
        listing = READERS[spec.reader](spec)
        tiny = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        for split, part in listing.splits():
            listing.decode(part, tiny, split)  # checks the hash of each image
        return f"{spec.name}: {_sizes(Manifest.of(spec, listing))}, intact (shipped)"
    lines: list[str] = []
    there = variants(spec)
    home = home_of(there[0])
    known = [
        (variant, prepared)
        for variant in there
        if (prepared := manifest.stored(home, variant)) is not None
    ]
    if not known:
        raise DataError(
            f"{spec.name} in {home} has no manifest to be held against. Make one from the tree as "
            f"it is: {manifest.command(spec)}"
        )
    intact: set[tuple[Path, str]] = set()  # lists of other shots name the same images
    for variant, prepared in known:
        wrong_list = manifest.first_wrong(
            prepared.list_files(home), intact, f"lists of {spec.name}"
        )
        if wrong_list is None:
            wrong = manifest.first_wrong(prepared.image_files(home), intact, f"verify {spec.name}")
            if wrong is not None:
                raise DataError(f"{spec.name} is not intact: {wrong}")
        try:
            now = listed(variant)
            detail = manifest.difference(prepared, now)
        except DataError as error:
            detail = str(error)
        if wrong_list or detail:
            told_of = [text for text in (wrong_list, detail) if text]
            raise DataError(f"{spec.name} is not intact: {': '.join(told_of)}")
        remarks = check_images(spec.name, now) if decode and not lines else []
        if not lines and not os.environ.get("PEFTBENCH_CACHE"):  # that is no place beside it
            remarks = [*remarks, *pixels.verify(home)]
        lines.append("; ".join([f"{variant.name}: {_sizes(prepared)}, intact", *remarks]))
    return "\n".join(lines)


def described(spec: DatasetSpec) -> str:
    """The card of a data set; what is published of it where it is not on this machine."""
    try:
        if spec.reader != "mini":
            home = home_of(variants(spec)[0])
            known = [m for v in variants(spec) if (m := manifest.stored(home, v)) is not None]
            if known:
                return "\n".join(map(cards.page, known))
        variant = variants(spec)[0]
        if spec.reader == "shift":
            return cards.page(Manifest.of(variant, listed(variant)))
        return cards.card(variant)
    except public.Absent:
        return cards.published(spec)


def _sizes(prepared: Manifest) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in prepared.sizes().items() if count)


def check_images(name: str, listing: Listing) -> list[str]:
    """Decode every image once; remarks about those that are handled in a special way.

    Raises:
        DataError: names the images that cannot be decoded.
    """
    assert listing.home is not None
    pictures = listing.home.pictures
    names = list(dict.fromkeys(n for part in listing.covered().values() for n in part.names))

    def inspected(picture: str) -> tuple[str | None, str | None]:
        path = pictures.path(picture)
        try:
            if path is not None:
                return None, images.inspect(path, str(path))[1]
            pictures.open(picture)
            return None, None
        except DataError as error:
            return str(error), None

    findings = list(each(inspected, names, f"decode {name}"))
    broken = [error for error, _ in findings if error]
    if broken:
        more = f" {len(broken) - NAMED} more are not named." if len(broken) > NAMED else ""
        raise DataError(
            f"{name} has {len(broken)} of {len(names):,} images that cannot be decoded. "
            + " ".join(broken[:NAMED])
            + more
        )
    kinds: dict[str, list[str]] = {}
    for picture, (_, kind) in zip(names, findings, strict=True):
        if kind:
            kinds.setdefault(kind, []).append(picture)
    return [
        f"{len(members):,} images {kind}, first {members[0]}"
        for kind, members in sorted(kinds.items())
    ]


def _is_there(spec: DatasetSpec, sources: Mapping[str, Source], data_dir: Path) -> bool:
    """Whether there is nothing to fetch; what was begun here and not finished is to be."""
    try:
        home_of(spec)
        return True
    except public.Absent:
        return False
    except public.Incomplete:
        begun = [sources[name] for name in spec.facts.prepared_from if name in sources]
        if any((data_dir / source.folder / DONE).is_file() for source in begun):
            return False
        raise


def _obtain(
    spec: DatasetSpec,
    data_dir: Path,
    sources: Mapping[str, Source],
    wanted: str | None,
    raw: Path | None,
) -> list[str]:
    """Fetch, unpack and convert; remarks about what came of it."""
    name = _choose(spec, wanted)
    if name is None:
        raise Manual(f"{spec.name} has no source that a program may use. {_get(spec)}")
    if name not in sources:
        raise unknown_name(f"source of {spec.name}:", name, tuple(sources))
    source = sources[name]
    built = name in spec.facts.built_from or (raw is not None and _is_converted(spec, source))
    if raw is not None and not built:
        raise DataError(
            f"--raw {raw}: {spec.name} is not built from raw archives. Put it where it is looked "
            "for, see `peftbench list datasets`."
        )
    folder = raw if raw is not None else data_dir / source.folder
    if raw is None:
        try:
            _fetch(spec, source, data_dir, folder, built)
        except Unreachable as error:
            raise Manual(f"{spec.name}: {error}\n{source.steps(data_dir)}") from error
    if not built:
        return [f"from {source.title}"]
    from peftbench.data.raw import build

    target = data_dir / public.SUITE_FOLDERS["vtab"][0] / spec.facts.folders[0]
    origin = f"from {source.title if raw is None else raw}"
    return [origin, *build(spec.name.partition("/")[2], folder, target)]


def _is_converted(spec: DatasetSpec, source: Source) -> bool:
    """Whether a folder that a person names can be converted, where no archives can.

    Those are tasks of VTAB-1k that can be built from what TensorFlow Datasets has prepared alone.
    """
    by_hand = not spec.facts.built_from and not source.archives
    return spec.name.startswith("vtab/") and by_hand


def _choose(spec: DatasetSpec, wanted: str | None) -> str | None:
    known = spec.facts.built_from + spec.facts.prepared_from
    if wanted is not None and wanted not in known:
        raise unknown_name(f"source of {spec.name}:", wanted, known)
    return wanted or (known[0] if known else None)


def _get(spec: DatasetSpec) -> str:
    return f"Get it: {spec.facts.source}." if spec.facts.source else ""


def _fetch(spec: DatasetSpec, source: Source, data_dir: Path, folder: Path, built: bool) -> None:
    if not source.archives:
        if built and folder.is_dir():  # somebody has followed the steps
            return
        raise Manual(f"{spec.name} has to be fetched by hand:\n{source.steps(data_dir)}")
    record = folder / DONE
    if not record.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            if built:  # the converter says what it lacks
                return
            raise DataError(
                f"{folder} is there and was not made from {source.title}. Complete it by hand, or "
                "move it away and run the command again."
            )
        downloads = [fetch(a.file, source.downloads(data_dir)) for a in source.archives]
        _note(record, set())
    else:
        downloads = [source.downloads(data_dir) / a.file.name for a in source.archives]
    done = _noted(record)
    for archive, path in zip(source.archives, downloads, strict=True):
        if archive.file.name in done:
            continue
        fetch(archive.file, path.parent)  # if somebody has removed it meanwhile
        if archive.unpack:
            unpack(path, folder, archive.strip, replace=True)
        else:
            put(path, folder / archive.file.name)
        done.add(archive.file.name)
        _note(record, done)


def _noted(record: Path) -> set[str]:
    """Which archives have been unpacked; of a note that is damaged none, so that all are again."""
    try:
        notes = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    return {name for name in notes if isinstance(name, str)} if isinstance(notes, list) else set()


def _note(record: Path, done: set[str]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    with images.replaced(record) as temporary:
        temporary.write_text(json.dumps(sorted(done)), encoding="utf-8")


def plan(
    spec: DatasetSpec, data_dir: Path, sources: Mapping[str, Source], wanted: str | None
) -> str:
    """What `prepare` would do, in a line."""
    if spec.reader == "mini":
        return f"{spec.name}: shipped"
    if spec.reader not in ("public", "shift") or _is_there(variants(spec)[0], sources, data_dir):
        return f"{spec.name}: is there; would be checked and listed"
    name = _choose(spec, wanted)
    if name is None:
        return f"{spec.name}: by hand. {_get(spec)}"
    source = sources[name]
    if not source.archives:
        return f"{spec.name}: by hand ({source.title})"
    size = f"{source.bytes / 1e9:.2f} GB" if source.bytes else "size not published"
    count = f"{len(source.archives)} file{'s' if len(source.archives) > 1 else ''}"
    return f"{spec.name}: would fetch {count} ({size}): {source.title}"
