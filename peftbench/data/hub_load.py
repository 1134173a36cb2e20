"""Tables of the Hugging Face hub or of a folder, through `datasets`; failures in one line."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench import network
from peftbench.data import images
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec


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


def _load_folder(datasets: Any, folder: Path, spec: DatasetSpec) -> dict[str, Any]:
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
        return dict(
            datasets.load_dataset(
                str(folder),
                name=spec.config_name,
                cache_dir=str(images.cache_dir() / "arrow"),
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
