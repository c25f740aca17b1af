"""Hub names: the cache first, one request where there is no network, and one line for every mistake."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tests.upstream.test_huggingface import to_bin, to_shards
from upstream import checkpoint
from upstream.checkpoint import load
from upstream.errors import UserError
from upstream.hub import download


@pytest.fixture
def folder(huggingface_folder, tmp_path, monkeypatch) -> Path:
    """The model that the tests call org/tiny."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return huggingface_folder("hubert", False)[1]


def into_cache(folder: Path, without: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
    """Put a model into the hub's cache; of `absent` files it is known that the model has none."""
    repository = Path(constants.HF_HUB_CACHE) / "models--org--tiny"
    shutil.copytree(folder, repository / "snapshots" / "abc", ignore=shutil.ignore_patterns(*without))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for name in absent:
        (repository / ".no_exist" / "abc").mkdir(parents=True)
        (repository / ".no_exist" / "abc" / name).touch()


def no_network(monkeypatch) -> list[str]:
    """Neither does the hub answer nor may anything be fetched; returns the addresses that are asked for."""
    asked = []

    def get_hf_file_metadata(url: str) -> None:
        asked.append(url)
        raise ConnectionError("no route to host\nlong story")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", get_hf_file_metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: pytest.fail("it was fetched"))
    return asked


def hub_of(folder: Path, monkeypatch) -> list[str]:
    """A hub that holds one model; returns what is fetched from it."""
    fetched = []

    def hf_hub_download(name: str, file: str) -> str:
        fetched.append(file)
        if name != "org/tiny" or not (folder / file).exists():
            raise EntryNotFoundError("not here")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return fetched


@pytest.mark.parametrize("rewrite", [lambda folder: None, to_bin, to_shards])
def test_a_model_in_the_cache_needs_no_network(rewrite, folder, monkeypatch) -> None:
    asked = no_network(monkeypatch)
    rewrite(folder)
    into_cache(folder)
    assert torch.equal(load("org/tiny").layer_norm.weight, load(folder).layer_norm.weight)
    assert asked == []


def test_a_file_that_the_model_is_known_not_to_have_is_not_asked_for(folder, monkeypatch) -> None:
    asked = no_network(monkeypatch)
    into_cache(folder, without=("preprocessor_config.json",), absent=("preprocessor_config.json",))
    with pytest.warns(UserWarning, match="waveforms will not be normalised"):
        load("org/tiny")
    assert asked == []


def test_what_only_may_be_missing_is_asked_for_once(folder, monkeypatch) -> None:
    asked = no_network(monkeypatch)
    into_cache(folder, without=("preprocessor_config.json",))
    with pytest.warns(UserWarning, match="waveforms will not be normalised"):
        load("org/tiny")
    assert len(asked) == 1


@pytest.mark.parametrize("without", [("*.safetensors",), ("model-00002*",), ("config.json",)])
def test_without_a_network_an_incomplete_model_is_one_line_after_one_request(without, folder, monkeypatch) -> None:
    asked = no_network(monkeypatch)
    to_shards(folder)
    into_cache(folder, without=without)
    said = r"org/tiny does not exist locally, on .* hub or in its cache \(it cannot be reached: no route to host\)$"
    with pytest.raises(UserError, match=said):
        load("org/tiny")
    assert len(asked) == 1


@pytest.mark.parametrize("rewrite", [to_bin, to_shards])
def test_what_is_missing_in_the_cache_is_fetched(rewrite, folder, monkeypatch) -> None:
    rewrite(folder)
    fetched = hub_of(folder, monkeypatch)
    assert torch.equal(load("org/tiny").layer_norm.weight, load(folder).layer_norm.weight)
    assert fetched[:2] == ["config.json", "preprocessor_config.json"]


def test_a_name_that_the_hub_does_not_have_is_one_line(folder, monkeypatch) -> None:
    hub_of(folder, monkeypatch)
    for name in ("org/absent", "org/a..b", "nothing", "exp/star/student", "a/b/../c"):
        with pytest.raises(UserError, match=f"^{name} does not exist") as raised:
            load(name)
        assert "\n" not in str(raised.value)
    assert checkpoint.existing_checkpoint(Path("org/absent")) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "cache"), "^cache cannot be written: Permission"),
        (LocalEntryNotFoundError("the network has gone"), r"^org/tiny does not exist .* \(LocalEntryNotFoundError\)"),
    ],
)
def test_a_fetch_that_fails_is_one_line(error, said, folder, monkeypatch) -> None:
    hub_of(folder, monkeypatch)

    def fail(name: str, file: str) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=said):
        load("org/tiny")


def test_a_single_file_is_asked_for_once_too(tmp_path, monkeypatch) -> None:
    asked = no_network(monkeypatch)
    with pytest.raises(ConnectionError, match=r"it cannot be reached: no route to host$"):
        download("pyf98/DPHuBERT", "model.pth", tmp_path)
    assert len(asked) == 1
