"""Downloads with checksums and progress, by pooch (the extra ``data``); archives give up only the files asked for."""

from __future__ import annotations

import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pliant.bench.data.files import DataError, written_whole

__all__ = ["fetch_archive", "fetch_file"]


class _Downloader:
    """What pooch calls to download: a stream with progress, silent where stderr is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Write what ``url`` has into ``output_file``."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        try:
            with urllib.request.urlopen(url, timeout=30) as response, Path(output_file).open("wb") as file, progress:
                size = int(response.headers.get("Content-Length") or 0)
                bar = progress.add_task(f"downloading {self._name}", total=size or None)
                while piece := response.read(2**16):
                    file.write(piece)
                    progress.advance(bar, len(piece))
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                raise OSError(f"HTTP {error.code} {error.reason}") from None


def _pooch(what: str, remedy: str) -> Any:
    try:
        return import_module("pooch")
    except ImportError as error:
        raise DataError(
            f"{what} is not here, and downloading needs pooch ({error}): pip install 'pliant[data]', or {remedy}"
        ) from error


def _download(url: str, known_hash: str, folder: Path, name: str, remedy: str) -> Path:
    """Download into ``folder`` and check; the checksum that was expected and the one that came are named."""
    pooch = _pooch(name, remedy)
    pooch.get_logger().setLevel("ERROR")
    try:
        found = pooch.retrieve(url, known_hash=known_hash, fname=name, path=folder, downloader=_Downloader(name))
    except (OSError, ValueError) as error:  # a wrong checksum is a ValueError
        raise DataError(
            f"{name} could not be downloaded from {url} ({' '.join(str(error).split())}); {remedy}"
        ) from error
    return Path(found)


def fetch_file(url: str, known_hash: str, target: Path, remedy: str) -> None:
    """Download one file, unless it is there.

    Args:
        url: its address.
        known_hash: ``algorithm:hex digest``.
        target: where it goes; appears whole or not at all.
        remedy: what to do where it cannot be had.

    Raises:
        DataError: no network, no pooch, or another checksum.
    """
    if target.is_file():
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = _download(url, known_hash, Path(scratch), target.name, remedy)
        written_whole(target, lambda file: file.write(found.read_bytes()))


def fetch_archive(url: str, known_hash: str, members: Mapping[str, Path], remedy: str) -> None:
    """Download an archive (``.tar.gz`` or ``.zip``) and take some files out of it, unless they are all there.

    Args:
        url: the archive's address.
        known_hash: ``algorithm:hex digest`` of the archive.
        members: name inside the archive to the file it becomes; nothing else is unpacked.
        remedy: what to do where it cannot be had.

    Raises:
        DataError: no network, no pooch, another checksum, or an archive without one of the members.
    """
    if all(path.is_file() for path in members.values()):
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = _download(url, known_hash, Path(scratch), url.rpartition("/")[2], remedy)
        try:
            if zipfile.is_zipfile(found):
                with zipfile.ZipFile(found) as packed:
                    for name, path in members.items():
                        with packed.open(name) as file:
                            _copy(file, path)
            else:
                with tarfile.open(found) as archive:
                    for name, path in members.items():
                        member = archive.extractfile(name)
                        if member is None:
                            raise KeyError(name)
                        _copy(member, path)
        except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise DataError(f"{url}: the archive cannot be unpacked ({error}); {remedy}") from error


def _copy(source: IO[bytes], target: Path) -> None:
    def write(file: IO[bytes]) -> None:
        while piece := source.read(2**20):
            file.write(piece)

    written_whole(target, write)
