"""The entries of s3prl and torch.hub."""

import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from upstream import hubconf
from upstream.checkpoint import save
from upstream.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = (
    *("starhubert", "starhubert_l", "starhubert_s", "starhubert_xs", "starwavlm"),
    *("skhubert", "skwavlm", "dphubert", "dpwavlm"),
)
ENTRIES = sorted(name + suffix for name in NAMES for suffix in ("", "_local", "_url"))


@pytest.fixture
def student(tmp_path: Path, tiny_encoder) -> Path:
    save(tiny_encoder(), tmp_path / "student")
    return tmp_path / "student"


def test_a_star_import_gives_the_entries():
    assert sorted(hubconf.__all__) == ENTRIES
    assert all(getattr(hubconf, name).__name__ == name for name in ENTRIES)


@pytest.mark.parametrize(
    ("name", "count"), [("starhubert", 3), ("starwavlm_local", 3), ("dphubert", 4), ("skwavlm", 4)]
)
def test_the_name_chooses_the_states(student, name, count):
    model = getattr(hubconf, name)(ckpt=str(student), model_config=None, refresh=False)
    assert not model.training
    assert len(model([torch.randn(8000)])["hidden_states"]) == count


def test_states_and_padding_are_keywords_too(student):
    model = hubconf.starhubert(str(student), states="all", padding="reference")
    assert (model.states, model.padding) == ("all", "reference")
    assert hubconf.starhubert(str(student), "states=projected", states="all").states == "projected"


def test_local_and_url_insist_on_a_checkpoint(student):
    with pytest.raises(UserError, match="for starhubert_local it must be the path"):
        hubconf.starhubert_local()
    with pytest.raises(UserError, match="for dphubert_local it must be the path"):
        hubconf.dphubert_local("https://example.org/model.pth")
    with pytest.raises(UserError, match="for skwavlm_url it must be the URL"):
        hubconf.skwavlm_url(str(student))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("skhubert", "distiller/run.py --recipe skill-hubert-960h"),
        ("skwavlm", "distiller/run.py --recipe skill-wavlm-plus-960h"),
        ("starhubert_xs", "distiller/run.py --recipe star-hubert-960h student.size=XS"),
    ],
)
def test_what_is_not_published_names_the_command_that_trains_it(name, command):
    with pytest.raises(UserError, match=f"no weights are published for {name}: .*{command}"):
        getattr(hubconf, name)()


def test_published_weights_are_fetched_with_their_configuration(tmp_path, monkeypatch):
    fetched, opened = [], []

    def fetch(file, refresh):
        fetched.append((file.name, refresh))
        return tmp_path / file.name

    monkeypatch.setattr(hubconf, "fetch", fetch)

    def expert(*args, **options):
        opened.append((args, options))
        return torch.nn.Identity()

    monkeypatch.setattr(hubconf, "UpstreamExpert", expert)
    hubconf.starhubert_l(refresh=True)
    hubconf.dphubert()
    hubconf.dphubert_url("https://example.org/model.pth", "https://example.org/model.yaml")
    names = [name for name, _ in fetched]
    assert names[:3] == ["starhubert_l.ckpt", "starhubert_l.yaml", "DPHuBERT-sp0.75.pth"]
    assert [refresh for _, refresh in fetched] == [True, True, False, False, False]
    assert opened[0] == ((tmp_path / "starhubert_l.ckpt", None), {"states": "layers"})
    assert opened[2] == ((tmp_path / names[3], tmp_path / names[4]), {"states": "projected"})


BESIDE_ANOTHER = """
import sys, torch
import safetensors.torch, yaml  # what the entries import besides
sys.modules["s3prl"] = None
before, path = set(sys.modules), list(sys.path)
models = []
for again in (False, True):  # with the user's packages importable, then imported
    models.append(torch.hub.load(sys.argv[1], "starhubert", source="local", ckpt=sys.argv[2], force_reload=again))
    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not added & {"upstream", "distiller", "hubconf", "tests"}, added
    import upstream.sub, distiller
    assert upstream.MINE and distiller.MINE
    before |= set(sys.modules)
assert sys.path == path and type(models[0]) is type(models[1])
torch.save(models[0].state_dict(), "state.pt")
models[1].load_state_dict(torch.load("state.pt", weights_only=True))
torch.save(models[0], "model.pt")  # the private name is importable as long as the process lives
features = torch.load("model.pt", weights_only=False)([torch.randn(16000), torch.randn(8000)])
print(type(models[0]).__name__, len(features["hidden_states"]), tuple(features["last_hidden_state"].shape))
"""


def test_torch_hub_works_without_s3prl_and_beside_another_upstream(tmp_path, student):
    (tmp_path / "upstream").mkdir()
    for name in ("distiller.py", "upstream/__init__.py", "upstream/sub.py"):
        (tmp_path / name).write_text("MINE = True\n")
    (tmp_path / "script.py").write_text(BESIDE_ANOTHER)
    run = subprocess.run(
        [sys.executable, "script.py", str(ROOT), str(student)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "UpstreamExpert 3 (2, 49, 48)\n"


def test_changed_code_is_loaded_anew(tmp_path, student):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "upstream", copy / "upstream", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", copy)
    first = torch.hub.load(str(copy), "starhubert", source="local", ckpt=str(student))
    with (copy / "upstream" / "expert.py").open("a") as file:
        file.write("\nUpstreamExpert.changed = True\n")
    second = torch.hub.load(str(copy), "starhubert", source="local", ckpt=str(student))
    assert not hasattr(first, "changed")
    assert second.changed


def test_torch_hub_lists_the_entries_and_documents_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "someone_distiller_main").symlink_to(ROOT)  # where torch.hub keeps a repository it has fetched
    options = types.MappingProxyType({"trust_repo": True, "skip_validation": True})
    assert sorted(torch.hub.list("someone/distiller:main", verbose=False, **options)) == ENTRIES
    text = torch.hub.help("someone/distiller:main", "starhubert_xs", **options)
    for word in ("9.39 M", "ckpt:", "model_config:", "refresh:", "states=layers", "hidden_states"):
        assert word in text
