"""Tables of the Hugging Face hub or of a folder, through `datasets`; failures in one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from peftbench import network
from peftbench.caches import cache_dir
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec
from peftbench.untrusted import check_plain_file

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves
TABLES = (".parquet", ".arrow")


def load(spec: DatasetSpec) -> tuple[str, dict[str, Any]]:
    """Where the data set is, as errors call it, and its splits as `datasets.Dataset`.

    Raises:
        DataError: `datasets` is not installed, or the set cannot be found, reached or read.
    """
    if not spec.hub:
        raise DataError(
            f"Data set {spec.name!r} needs dataset.hub=ORG/NAME, a set of the Hugging Face hub, or "
            "a folder of parquet or arrow files."
        )
    folder = Path(spec.hub).expanduser()
    if folder.is_file():
        raise DataError(
            f"dataset.hub={spec.hub} is a file, not a folder. Give the folder of the parquet or "
            "arrow files, or ORG/NAME."
        )
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", spec.hub):
        raise DataError(
            f"dataset.hub={spec.hub} is neither a folder nor of the form ORG/NAME. Sets that went "
            "by one word have an organisation now: mnist is ylecun/mnist."
        )
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"Data set {spec.name!r} needs the package datasets. Install it: "
            "pip install 'peftbench[hf]'."
        ) from error
    with _calm(datasets):
        if folder.is_dir():
            place = str(folder.absolute())
            return place, _load_folder(datasets, Path(place), spec)
        return spec.hub, _load_remote(datasets, spec.hub, spec)


def check_names(tables: Mapping[str, Any], column: str, place: str) -> None:
    """Hold the class names that each file declares against those that its numbers are read with.

    The library takes the names of one file, or of the card of the set, for all files, and leaves
    the numbers as they are.

    Raises:
        DataError: a file has other names, or has them in another order.
    """
    import datasets

    names = getattr(next(iter(tables.values())).features[column], "names", None)
    if names is None:
        return
    for file in _files(tables, place):
        with contextlib.suppress(Exception):  # what it cannot read it would not have loaded
            feature = datasets.Features.from_arrow_schema(_schema(file)).get(column)
            own = getattr(feature, "names", None)
            if own is not None and list(own) != list(names)[: len(own)]:
                break
    else:
        return
    first = next(i for i, name in enumerate(own) if i >= len(names) or name != names[i])
    other = repr(names[first]) if first < len(names) else "nothing"
    raise DataError(
        f"{place}: column {column!r} of {file.name} calls class {first} {own[first]!r}, and other "
        f"files or the card of the set call it {other}: labels would be swapped. Write all files "
        "with the same class names in one order."
    )


def _files(tables: Mapping[str, Any], place: str) -> list[Path]:
    """The parquet and arrow files of a set, as far as they are on this machine."""
    folder = Path(place)
    if folder.is_absolute():
        saved = any((folder / name).is_file() for name in SAVED)  # each split has names of its own
        return [] if saved else sorted(p for p in folder.rglob("*") if p.suffix in TABLES)
    paths = dict[str, Path]()
    for table in tables.values():
        for address in table.info.download_checksums or {}:
            if PurePosixPath(address).suffix in TABLES and address not in paths:
                with contextlib.suppress(Exception):  # no longer in the cache, and no network
                    from datasets.utils.file_utils import cached_path

                    paths[address] = Path(cached_path(address))
    return list(paths.values())


def _schema(file: Path) -> Any:
    import pyarrow
    from pyarrow import ipc, parquet

    with file.open("rb") as opened:
        if opened.read(4) == b"PAR1":
            return parquet.read_schema(file)
        opened.seek(0)
        try:
            return ipc.open_stream(opened).schema
        except pyarrow.ArrowInvalid:
            opened.seek(0)
            return ipc.open_file(opened).schema


def _check_files(folder: Path) -> None:
    """Refuse what the library would wait for without end."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            try:
                check_plain_file(path)
            except ValueError as error:
                raise DataError(f"{path}: {error}. Remove it from the data set.") from error
            except OSError:  # a dead link, or what may not be looked at: the library says so
                continue


def _load_folder(datasets: Any, folder: Path, spec: DatasetSpec) -> dict[str, Any]:
    _check_files(folder)
    try:
        if any((folder / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(str(folder))
            return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
        return dict(
            datasets.load_dataset(
                str(folder),
                name=spec.config_name,
                cache_dir=str(cache_dir() / "arrow"),
                trust_remote_code=False,  # what newer versions refuse anyway
            )
        )
    except Exception as error:  # of many kinds, some of them of pyarrow
        raise DataError(_reason(error, str(folder))) from error


def _load_remote(datasets: Any, name: str, spec: DatasetSpec) -> dict[str, Any]:
    if network.is_offline():
        obstacle: str | None = "HF_HUB_OFFLINE is set"
    else:
        obstacle = network.obstacle(network.hub_address())
    try:
        with _offline(datasets) if obstacle else contextlib.nullcontext():
            return dict(
                datasets.load_dataset(
                    name,
                    name=spec.config_name,
                    revision=spec.revision,
                    trust_remote_code=False,
                )
            )
    except (OSError, ValueError) as error:
        if obstacle:
            raise DataError(
                f"dataset.hub={name} is not in the local cache and {obstacle}. Run once with a "
                "network, or set dataset.hub to a folder of its parquet files."
            ) from error
        raise DataError(_reason(error, name)) from error
    except Exception as error:
        raise DataError(_reason(error, name)) from error


def _reason(error: Exception, place: str) -> str:
    """One line about a data set that the library does not read."""
    kind = type(error).__name__
    cause = error.__cause__ if kind == "DatasetGenerationError" and error.__cause__ else error
    said = " ".join(str(cause).split())[:200].rstrip(".") or kind
    if "script" in said.lower() or "trust_remote_code" in said:
        return (
            f"{place} is read by a script, and code that comes with a data set is never run. Many "
            "sets are there as plain files too: dataset.revision=refs/convert/parquet."
        )
    if "onfig" in said and ("missing" in said or "not found" in said):
        return f"{place}: {said}. Name one with dataset.config_name."
    if kind == "DatasetNotFoundError":
        return (
            f"{place} is not on the Hugging Face hub, or is closed to you ({said}). Check "
            "dataset.hub=ORG/NAME, or log in with `hf auth login`."
        )
    return f"{place} cannot be read: {said}. Check dataset.hub, dataset.revision and its files."


@contextlib.contextmanager
def _calm(datasets: Any) -> Iterator[None]:
    """No log of the library, whose failures come as errors; bars on a terminal only."""
    level = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """The cache alone: without a network the library would retry for most of a minute."""
    from huggingface_hub import constants

    modules: tuple[Any, ...] = (datasets.config, constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
