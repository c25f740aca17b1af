"""Fetching published checkpoints: the cache, refused files, and errors."""

import hashlib
import http.server
import io
import sys
import threading
import types
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch

from upstream.download import RemoteFile, cache_directory, fetch
from upstream.errors import UserError

DRIVE = "https://drive.google.com/file/d/1Zu1idRx-sVaqMvRsUKtttzkSn4df6TUr"


@pytest.fixture(autouse=True)
def hub_directory(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return cache_directory()


def checkpoint_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights" * 100)
    return buffer.getvalue()


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_a_url_is_fetched_once_and_again_on_refresh(tmp_path, hub_directory):
    source = tmp_path / "model.pth"
    source.write_bytes(checkpoint_bytes())
    file = RemoteFile.from_url(source.as_uri())
    path = fetch(file)
    assert path.parent == hub_directory
    assert path.read_bytes() == checkpoint_bytes()
    source.write_bytes(checkpoint_bytes() + b"!")
    assert fetch(file).read_bytes() == checkpoint_bytes()
    assert fetch(file, refresh=True).read_bytes() == checkpoint_bytes() + b"!"
    assert leftovers(hub_directory) == [path.name, f"{path.name}.sha256"]


def test_a_damaged_copy_is_fetched_again(tmp_path, hub_directory):
    source = tmp_path / "model.pth"
    source.write_bytes(checkpoint_bytes())
    file = RemoteFile.from_url(source.as_uri())
    path = fetch(file)
    path.write_bytes(checkpoint_bytes()[:-1])
    assert fetch(file).read_bytes() == checkpoint_bytes()
    path.write_bytes(b"damaged")
    source.unlink()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(file)
    (hub_directory / f"{path.name}.sha256").unlink()  # a copy that the user placed there is not compared
    assert fetch(file).read_bytes() == b"damaged"


def test_two_urls_with_one_file_name_do_not_meet():
    first, second = (RemoteFile.from_url(f"https://example.org/{run}/student.pth?v=1") for run in ("a", "b"))
    assert first.name != second.name
    assert first.name.endswith("student.pth")


@pytest.mark.parametrize(
    ("content", "promise", "message"),
    [
        (b"<!DOCTYPE html><html>quota exceeded</html>", {}, "is a web page or empty"),
        (b"", {}, "is a web page or empty"),
        (checkpoint_bytes()[:-30], {}, "not a complete PyTorch checkpoint"),
        (checkpoint_bytes(), {"size": 7}, "bytes arrived, but there must be 7"),
        (checkpoint_bytes(), {"sha256": "0" * 64}, "but it must be 0000"),
    ],
)
def test_what_is_not_what_was_promised_is_not_kept(tmp_path, hub_directory, content, promise, message):
    source = tmp_path / "model.pth"
    source.write_bytes(content)
    with pytest.raises(UserError, match=message):
        fetch(RemoteFile(source.as_uri(), "model.pth", **promise))
    assert leftovers(hub_directory) == []


def test_a_known_digest_is_accepted(tmp_path):
    source = tmp_path / "model.pth"
    source.write_bytes(checkpoint_bytes())
    digest = hashlib.sha256(checkpoint_bytes()).hexdigest()
    assert fetch(RemoteFile(source.as_uri(), "model.pth", size=len(checkpoint_bytes()), sha256=digest)).exists()


def test_a_failed_refresh_keeps_the_old_copy(tmp_path):
    source = tmp_path / "model.pth"
    source.write_bytes(checkpoint_bytes())
    file = RemoteFile.from_url(source.as_uri())
    path = fetch(file)
    source.unlink()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(file, refresh=True)
    assert path.read_bytes() == checkpoint_bytes()


@pytest.mark.parametrize("url", ["http://localhost:abc/x.ckpt", "http://[x/x.ckpt", "http://local host/x.ckpt"])
def test_what_is_no_url_is_a_one_line_error(hub_directory, url):
    with pytest.raises(UserError, match=r"x\.ckpt cannot be fetched: ") as caught:
        fetch(RemoteFile.from_url(url))
    assert url in str(caught.value)
    assert leftovers(hub_directory) == []


class Truncating(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"short")

    def log_message(self, format, *args):
        pass


def test_a_connection_that_breaks_off_is_noticed(hub_directory):
    with http.server.HTTPServer(("127.0.0.1", 0), Truncating) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="5 bytes arrived, but there must be 1000"):
            fetch(RemoteFile.from_url(f"http://127.0.0.1:{server.server_port}/model.bin"))
        server.shutdown()
    assert leftovers(hub_directory) == []


def test_google_drive_goes_through_gdown(monkeypatch):
    asked = []

    def download(id, output, quiet):
        asked.append(id)
        Path(output).write_bytes(checkpoint_bytes())
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    assert fetch(RemoteFile(DRIVE, "starhubert.ckpt")).read_bytes() == checkpoint_bytes()
    assert fetch(RemoteFile(f"{DRIVE.replace('file/d/', 'uc?id=')}&export=download", "other.ckpt")).exists()
    assert asked == ["1Zu1idRx-sVaqMvRsUKtttzkSn4df6TUr"] * 2
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=lambda **kwargs: None))
    with pytest.raises(UserError, match="download it in a browser"):
        fetch(RemoteFile(DRIVE, "third.ckpt"))


def test_hugging_face_goes_through_its_client(monkeypatch):
    def hf_hub_download(repository, name, local_dir):
        assert repository == "pyf98/DPHuBERT"
        path = Path(local_dir) / name
        path.write_bytes(checkpoint_bytes())
        return str(path)

    file = RemoteFile("https://huggingface.co/pyf98/DPHuBERT", "DPHuBERT-sp0.75.pth", "pyf98/DPHuBERT")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    assert fetch(file).read_bytes() == checkpoint_bytes()

    def offline(*args, **kwargs):
        raise RuntimeError("no route to host\nlong story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"from Hugging Face: no route to host$"):
        fetch(file, refresh=True)


@pytest.mark.parametrize(("module", "repository"), [("gdown", ""), ("huggingface_hub", "pyf98/DPHuBERT")])
def test_a_missing_client_is_named(monkeypatch, module, repository):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=rf"without the package {module}: .*uv pip install {module}\), .*give its path$"
    ):
        fetch(RemoteFile(DRIVE, "starhubert.ckpt", repository))


@pytest.mark.parametrize("home", ["/proc/x", "{tmp}/file"])
def test_a_cache_that_cannot_be_written_is_named(home, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "model.pth").write_bytes(checkpoint_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: home.format(tmp=tmp_path))
    said = r"/checkpoints/speech-distiller cannot be written: \w.*; TORCH_HOME names another folder$"
    with pytest.raises(UserError, match=said):
        fetch(RemoteFile.from_url((tmp_path / "model.pth").as_uri()))
