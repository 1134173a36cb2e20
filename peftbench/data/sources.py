"""Where data sets come from: archives with their hashes, or steps that a person must take."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from peftbench.data.download import RemoteFile
from peftbench.data.unpack import is_archive
from peftbench.errors import ConfigError


@dataclass(frozen=True)
class Archive:
    """A file of a source, and how it is unpacked into the folder of the source."""

    file: RemoteFile
    unpack: bool = True  # false: the file itself is put there
    strip: str = ""  # only what is below this folder of the archive, without it


@dataclass(frozen=True)
class Source:
    """One way to get a data set, or several that share their archives."""

    name: str
    title: str
    folder: str  # below the folder for all data
    archives: tuple[Archive, ...] = ()
    manual: str = ""  # steps for a person, where no program may fetch it

    @property
    def bytes(self) -> int:
        """Of all archives, as far as they are published."""
        return sum(archive.file.bytes or 0 for archive in self.archives)

    def steps(self, data_dir: Path) -> str:
        """What a person does where no program may, or can: with the folders of this machine."""
        if not self.archives:
            return self.manual.format(data_dir=data_dir, folder=data_dir / self.folder).rstrip()
        files = [
            f"  {file.name} ({f'{file.bytes:,} bytes' if file.bytes else 'size not published'}) "
            f"from {file.url}"
            for file in (archive.file for archive in self.archives)
        ]
        place = self.downloads(data_dir)
        return "\n".join([f"Put these files into {place} and run the command again:", *files])

    def downloads(self, data_dir: Path) -> Path:
        """Where its archives are kept."""
        return data_dir / "downloads" / self.name


def source_of(name: str, entry: Mapping[str, Any]) -> Source:
    """A source as configured; `ConfigError` where its file makes no sense."""
    try:
        values = dict(entry)
        archives = tuple(_archive(dict(file)) for file in values.pop("files", ()))
        source = Source(name=name, archives=archives, **values)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"source {name}: {error}. Correct its file.") from error
    if not source.archives and not source.manual:
        raise ConfigError(f"source {name} has neither files nor manual steps. Add one of them.")
    folder = PurePosixPath(source.folder)
    if folder.is_absolute() or ".." in folder.parts or not folder.parts:
        raise ConfigError(f"source {name}: folder {source.folder!r} is not below the data folder.")
    return source


def _archive(file: dict[str, Any]) -> Archive:
    name = file.pop("name", "") or PurePosixPath(urllib.parse.urlsplit(file["url"]).path).name
    unpack = file.pop("unpack", is_archive(Path(name)))
    strip = file.pop("strip", "")
    return Archive(RemoteFile(name=name, **file), unpack, strip)
