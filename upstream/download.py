"""Files from Hugging Face, Google Drive or a URL: checked, whole or not at all, cached under torch.hub's directory."""

import hashlib
import http.client
import os
import re
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

TIMEOUT = 60  # seconds without an answer
GOOGLE_DRIVE = re.compile(r"https?://(?:drive|docs)\.google\.com/.*?(?:/d/|[?&]id=)(?P<id>[\w-]{20,})")


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch: a URL, or a file of a Hugging Face repository."""

    url: str
    name: str  # of the cached file; its suffix tells the format
    repository: str = ""  # Hugging Face ORG/NAME: `name` is then the file's path in it, and `url` its page
    size: int | None = None  # bytes, when known
    sha256: str | None = None

    @classmethod
    def from_url(cls, url: str) -> "RemoteFile":
        """A URL given by the user; its name in the cache carries a digest, so that two URLs never meet."""
        digest = hashlib.sha256(url.encode()).hexdigest()[:12]
        stem = re.sub(r"[^\w.-]", "_", url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])[-80:]
        return cls(url, f"{digest}-{stem}")


def is_url(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("http://", "https://", "file://"))


def cache_directory() -> Path:
    """Where published checkpoints are kept: below torch.hub's own directory."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "speech-distiller"


def fetch(file: RemoteFile, refresh: bool = False) -> Path:
    """The cached copy of `file`, fetched first when it is missing or `refresh` is set.

    Raises:
        UserError: it cannot be fetched, or what came is not what was promised; nothing is left in the cache then.
    """
    target = cache_directory() / file.name
    if target.exists() and not refresh:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as directory:
            temporary = Path(directory) / target.name
            _retrieve(file, temporary)
            _check(file, temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
    except UserError:  # a ValueError itself
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's errors; the latter two: no such URL
        raise UserError(f"{file.url}: cannot be fetched ({error})") from None
    return target


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
    arrived = destination.stat().st_size
    if promised is not None and int(promised) != arrived:
        raise UserError(f"{file.url}: {arrived} bytes arrived of {promised}; try again")


def _from_hugging_face(file: RemoteFile, destination: Path) -> None:
    download = _import_or_explain(file, "huggingface_hub", "hf_hub_download")
    try:
        shutil.copyfile(download(file.repository, file.name, local_dir=destination.parent / "hub"), destination)
    except Exception as error:  # the client's many network errors share no base class
        raise UserError(f"{file.url}: cannot be fetched from Hugging Face ({_first_line(error)})") from None


def _from_google_drive(file: RemoteFile, identifier: str, destination: Path) -> None:
    download = _import_or_explain(file, "gdown", "download")
    try:
        fetched = download(id=identifier, output=str(destination), quiet=False)
    except Exception as error:  # gdown raises whatever its HTTP client does, and exceptions of its own
        raise UserError(f"{file.url}: cannot be fetched from Google Drive ({_first_line(error)})") from None
    if fetched is None:
        raise UserError(f"{file.url}: cannot be fetched from Google Drive; download it in a browser and give its path")


def _import_or_explain(file: RemoteFile, module: str, function: str) -> Callable[..., Any]:
    try:
        return getattr(__import__(module), function)
    except ImportError:
        raise UserError(
            f"{file.url}: fetching it needs the package {module}, which is not installed; "
            f"download the file in a browser and give its path, or install it: uv pip install {module}"
        ) from None


def _check(file: RemoteFile, path: Path) -> None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise UserError(f"{file.url}: {size} bytes arrived instead of {file.size}; try again")
    if file.sha256 is not None:
        digest = _sha256(path)
        if digest != file.sha256:
            raise UserError(f"{file.url}: sha256 {digest} is not the expected {file.sha256}")
    with path.open("rb") as stream:
        page = stream.read(64).lstrip().lower().startswith((b"<!doctype", b"<html"))
    if page or size == 0:
        raise UserError(f"{file.url}: a web page or nothing came instead of the file")
    if path.suffix in (".ckpt", ".pth") and not zipfile.is_zipfile(path):  # the index at its end is missing
        raise UserError(f"{file.url}: what came is cut short or no PyTorch checkpoint; try again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest is Python 3.11's; s3prl's contributions meet older ones
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
