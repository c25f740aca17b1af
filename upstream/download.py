"""Files from Hugging Face, Google Drive or a URL: checked, written atomically, cached under torch.hub's directory."""

import hashlib
import http.client
import re
import shutil
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from . import hub
from .errors import UserError, first_line
from .files import atomic_file

TIMEOUT = 60  # seconds without an answer
GOOGLE_DRIVE = re.compile(r"https?://(?:drive|docs)\.google\.com/.*?(?:/d/|[?&]id=)(?P<id>[\w-]{20,})")


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: a URL, or a file of a Hugging Face repository."""

    url: str
    name: str  # of the cached file; its suffix tells the format
    repository: str = ""  # Hugging Face ORG/NAME; then `name` is the file's path in it, and `url` its page
    size: int | None = None  # bytes, if known
    sha256: str | None = None  # if known

    @classmethod
    def from_url(cls, url: str) -> "RemoteFile":
        """A URL given by the user; its name in the cache contains a digest, so that two URLs never collide."""
        digest = hashlib.sha256(url.encode()).hexdigest()[:12]
        stem = re.sub(r"[^\w.-]", "_", url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])[-80:]
        return cls(url, f"{digest}-{stem}")


def is_url(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("http://", "https://", "file://"))


def cache_directory() -> Path:
    """Where published checkpoints are kept: below torch.hub's directory."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "speech-distiller"


def fetch(file: RemoteFile, refresh: bool = False) -> Path:
    """The cached copy of `file`; fetched if it is missing or damaged, or if `refresh` is set.

    A copy is damaged if its digest differs from the one recorded beside it when it was fetched.

    Raises:
        UserError: the file cannot be fetched, or does not match its known size or digest; the cache is unchanged. Or
            the cache cannot be written.
    """
    target = cache_directory() / file.name
    record = target.with_name(f"{target.name}.sha256")
    try:
        if target.exists() and not refresh:
            digest = file.sha256 or (record.read_text() if record.exists() else None)
            if digest in (None, _sha256(target)):
                return target
        with atomic_file(target) as temporary:
            _retrieve(file, temporary)
            digest = _check(file, temporary)
        with atomic_file(record) as temporary:
            temporary.write_text(digest)
    except UserError:  # a ValueError too
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's errors; the last two: not a URL
        if isinstance(error, OSError) and _is_of(error, target.parent):
            hint = "TORCH_HOME names another folder"
            raise UserError(f"{target.parent} cannot be written: {error.strerror}; {hint}") from None
        raise UserError(f"{file.url} cannot be fetched: {error}") from None
    return target


def _is_of(error: OSError, folder: Path) -> bool:
    """Whether an error is about a folder: one of its parents, or a file in it."""
    path = Path(error.filename) if isinstance(error.filename, str) else None
    return path is not None and (path.is_relative_to(folder) or folder.is_relative_to(path))


def _retrieve(file: RemoteFile, destination: Path) -> None:
    drive = GOOGLE_DRIVE.match(file.url)
    if file.repository:
        _from_hugging_face(file, destination)
    elif drive:
        _from_google_drive(file, drive["id"], destination)
    else:
        _from_url(file, destination)


def _from_url(file: RemoteFile, destination: Path) -> None:
    with urllib.request.urlopen(file.url, timeout=TIMEOUT) as response, destination.open("wb") as stream:
        shutil.copyfileobj(response, stream)
        promised = response.headers.get("Content-Length")
    _check_size(file, destination, None if promised is None else int(promised))


def _from_hugging_face(file: RemoteFile, destination: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
            shutil.copyfile(hub.download(file.repository, file.name, Path(folder)), destination)
    except ImportError:
        raise _missing(file, "huggingface_hub") from None
    except Exception as error:  # the client's many network errors share no base class
        raise UserError(f"{file.url} cannot be fetched from Hugging Face: {first_line(error)}") from None


def _from_google_drive(file: RemoteFile, identifier: str, destination: Path) -> None:
    try:
        from gdown import download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing(file, "gdown") from None
    try:
        path = download(id=identifier, output=str(destination), quiet=False)
    except Exception as error:  # gdown raises its own errors and its HTTP client's
        raise UserError(f"{file.url} cannot be fetched from Google Drive: {first_line(error)}") from None
    if path is None:
        raise UserError(f"{file.url} cannot be fetched from Google Drive; download it in a browser and give its path")


def _missing(file: RemoteFile, package: str) -> UserError:
    return UserError(
        f"{file.url} cannot be fetched without the package {package}: install it (uv pip install {package}), "
        "or download the file in a browser and give its path"
    )


def _check(file: RemoteFile, path: Path) -> str:
    """Check a fetched file against its known size and digest; returns the digest."""
    _check_size(file, path, file.size)
    digest = _sha256(path)
    if digest != (file.sha256 or digest):
        raise UserError(f"{file.url} has the SHA-256 digest {digest}, but it must be {file.sha256}")
    with path.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")) or not start:
        raise UserError(f"{file.url} is a web page or empty, not the file")
    if path.suffix in (".ckpt", ".pth") and not zipfile.is_zipfile(path):  # the index at the end is missing
        raise UserError(f"{file.url} is not a complete PyTorch checkpoint; try again")
    return digest


def _check_size(file: RemoteFile, path: Path, size: int | None) -> None:
    if size not in (None, path.stat().st_size):
        raise UserError(f"{file.url}: {path.stat().st_size} bytes arrived, but there must be {size}; try again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11; s3prl runs on older ones
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
