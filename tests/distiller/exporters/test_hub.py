"""Uploads, to a stand-in for the hub that speaks its protocol: what is shown, what arrives, and what opens again."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from distiller import export
from tests.distiller.exporters.test_transformers import STUDENTS
from tests.distiller.exporters.test_transformers import student as random_student
from upstream.checkpoint import load, save


class Hub:
    """One model on the hub: its files, whether it is private, and the token that may write it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.requests: list[str] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            state.requests.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != "Bearer hf_right":
                self.answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)  # in newer and in older words of the client
                state.private = asked.get("visibility") == "private" or bool(asked.get("private"))
                self.answer({"url": f"{constants.ENDPOINT}/me/tiny"})
            elif self.path == "/api/validate-yaml":  # of the card's head
                self.answer({"errors": [], "warnings": []})
            elif self.path == "/api/models/me/tiny/preupload/main":
                files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
                self.answer({"files": [file | {"shouldIgnore": False} for file in files]})
            elif self.path.startswith("/api/models/me/tiny/commit/main"):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitUrl": f"{constants.ENDPOINT}/me/tiny/commit/{'a' * 40}", "commitOid": "a" * 40})
            else:
                self.answer({"error": f"no {self.path}"}, 404)

        def do_GET(self) -> None:
            state.requests.append(self.path)
            name = self.path.partition("/me/tiny/resolve/")[2].partition("/")[2]
            if name in state.files:
                headers = {"ETag": f'"{name}"', "X_Repo_Commit": "a" * 40}
                self.answer(state.files[name], **headers)
            elif name:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit="a" * 40)
            else:  # a model's description
                self.answer({"id": "me/tiny", "sha": "a" * 40, "siblings": []})

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["narrow", "pruned"])
def student(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    card = f"# star student of facebook/hubert-base-ls960\n\n| audio | {tmp_path}/LibriSpeech |\n"
    files = {"README.md": card, "origin.json": '{"teacher": "facebook/hubert-base-ls960"}'}
    save(random_student(**STUDENTS[request.param]), tmp_path / "student", files)
    return tmp_path / "student"


def exported(*argv: str | Path) -> int:
    return export.main(["--to", "transformers", *(str(word) for word in argv)])


def test_without_upload_it_is_only_shown(student: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(student, "--push-to-hub", "me/tiny") == 0
    said = capsys.readouterr().out
    assert hub.requests == []
    for shown in ("nothing is uploaded without --upload", "me/tiny", "model.safetensors", "license: apache-2.0"):
        assert shown in said
    assert "base_model: facebook/hubert-base-ls960" in said


def test_what_is_uploaded_opens_again(student: Path, hub: Hub, tmp_path: Path, capsys) -> None:
    output = tmp_path / "kept"
    assert exported(student, "--push-to-hub", "me/tiny", "--upload", "--private", "--output", output) == 0
    assert "upstream.checkpoint.load('me/tiny') opens it" in capsys.readouterr().out
    assert hub.private is True
    assert hub.files == {path.name: path.read_bytes() for path in output.iterdir()}
    assert not any(str(tmp_path).encode() in content for content in hub.files.values())
    ours, theirs = load(student).state_dict(), load("me/tiny").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_hub_that_refuses_is_one_line(student: Path, hub: Hub, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert exported(student, "--push-to-hub", "me/tiny", "--upload") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: me/tiny is not uploaded: ")
    assert "log in with `hf auth login`, or set HF_TOKEN" in said
    assert said.count("\n") == 1
    assert hub.files == {}


def test_no_hub_is_one_line(student: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert exported(student, "--push-to-hub", "me/tiny", "--upload") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: me/tiny is not uploaded: the hub cannot be reached: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            "--to transformers --push-to-hub tiny",
            "--push-to-hub is 'tiny', but it must be a hub name of the form ORG/NAME",
        ),
        ("--to onnx --push-to-hub me/tiny", "--push-to-hub needs --to transformers, not --to onnx"),
        ("--to transformers --upload --output out", "--upload needs --push-to-hub ORG/NAME"),
        ("--to transformers --private --output out", "--private needs --push-to-hub ORG/NAME"),
        (
            "--to transformers",
            "--output is missing; give the folder or file to write (optional only with --push-to-hub)",
        ),
    ],
)
def test_mistakes_are_one_line(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["student", *argv.split()]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
