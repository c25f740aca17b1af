import argparse
import importlib
import os
import select
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
import torchaudio

from distiller.common.files import write_text, writing_folder
from downstream_recipes.adaptation import compat
from downstream_recipes.adaptation.corpus_key import corpus_key
from downstream_recipes.adaptation.import_hooks import after_import
from upstream.errors import UserError


def test_a_module_is_adapted_right_after_its_import(tmp_path, monkeypatch):
    (tmp_path / "adaptable").mkdir()
    (tmp_path / "adaptable" / "__init__.py").write_text("")
    (tmp_path / "adaptable" / "inner.py").write_text("value = 1")
    (tmp_path / "adaptable" / "user.py").write_text("from adaptable.inner import value")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    seen = []

    def double(module):
        seen.append(module.__name__)
        module.value *= 2

    after_import({"adaptable.inner": double, "adaptable.absent": double})
    assert seen == []  # importing the package alone touches nothing
    assert importlib.import_module("adaptable.user").value == 2
    importlib.import_module("adaptable.user")
    assert seen == ["adaptable.inner"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("adaptable.absent")
    after_import({"adaptable.inner": double})  # imported already: now
    assert seen == ["adaptable.inner"] * 2


def test_torchaudio_has_what_s3prl_calls():
    compat.patch_audio_files()
    compat.patch_sox_effects()
    torchaudio.set_audio_backend("sox_io")
    from torchaudio.sox_effects import apply_effects_tensor

    halved, rate = apply_effects_tensor(torch.ones(1, 400) * 0.5, 16000, [["gain", "-6.0205999"]])
    assert rate == 16000
    assert torch.allclose(halved, torch.full((1, 400), 0.25), atol=1e-4)


def test_only_what_is_missing_is_patched(monkeypatch):
    monkeypatch.setattr(torchaudio, "set_audio_backend", "theirs", raising=False)
    load = torchaudio.load
    compat.patch_audio_files()
    assert (torchaudio.set_audio_backend, torchaudio.load) == ("theirs", load)
    working = types.SimpleNamespace(apply_effects_tensor=lambda *args: None)
    monkeypatch.setitem(sys.modules, "torchaudio.sox_effects", working)
    compat.patch_sox_effects()
    assert sys.modules["torchaudio.sox_effects"] is working


def test_the_runners_checkpoints_load_without_executing_anything(tmp_path):
    states = {"Args": argparse.Namespace(upstream="starhubert"), "Step": 2, "Config": {"runner": {"total_steps": 2}}}
    torch.save(states, tmp_path / "states-2.ckpt")
    compat.patch_torch_load()
    assert torch.load(tmp_path / "states-2.ckpt", map_location="cpu")["Args"].upstream == "starhubert"


def test_hugging_face_classes_that_are_gone_can_be_imported():
    compat.patch_hugging_face_hub()
    from huggingface_hub import HfFolder, Repository

    assert HfFolder is not None
    assert Repository is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU .cuda() has a meaning")
def test_cuda_calls_stay_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    compat.patch_cuda()
    tensor = torch.zeros(2)
    assert tensor.cuda() is tensor


def test_our_upstreams_are_on_the_hub():
    hub = types.ModuleType("s3prl.hub")
    compat.add_upstreams(hub)
    names = [name for name in dir(hub) if not name.startswith("_")]
    assert len(names) == 27
    assert hub.skwavlm_local.__name__ == "skwavlm_local"


def test_isinstance_is_left_alone():
    helper = types.ModuleType("helper")
    helper.hack_isinstance = lambda: pytest.fail("builtins.isinstance was replaced")
    compat.leave_isinstance_alone(helper)
    helper.hack_isinstance()


def test_ctc_gets_its_datasets_and_keeps_its_worker_count():
    data = pytest.importorskip("s3prl.downstream.ctc.data")
    seen = []
    copy = types.ModuleType("s3prl.downstream.ctc.data")
    copy.__dict__.update(data.__dict__)
    copy.load_dataset = lambda split, tokenizer, corpus: seen.append(corpus.pop("num_workers"))
    compat.complete_ctc(copy)
    corpus = {"num_workers": 3}
    for split in ("train", "dev"):
        copy.load_dataset(split, None, corpus)
    assert seen == [3, 3]
    from s3prl.downstream.ctc.corpus.libriphone import LibriPhoneDataset
    from s3prl.downstream.ctc.corpus.snips import SnipsDataset

    assert {LibriPhoneDataset.__module__, SnipsDataset.__module__} == {"downstream_recipes.adaptation.ctc_datasets"}


def identification_module(lists: list[str]) -> types.ModuleType:
    """s3prl's SID dataset as far as its cache goes."""
    module = types.ModuleType("dataset")

    class SpeakerClassifiDataset:
        def __init__(self, mode, file_path, meta_data, max_timestep=None):
            cache = Path(module.CACHE_PATH, f"{mode}.pkl")
            if not cache.is_file():
                lists.append(mode)
                cache.write_text(str(file_path))
            self.found = cache.read_text()

    module.SpeakerClassifiDataset = SpeakerClassifiDataset
    module.CACHE_PATH = "site-packages"
    return module


def test_identification_lists_are_kept_per_corpus(tmp_path, own_cache):
    made: list[str] = []
    module = identification_module(made)
    compat.move_identification_cache(module)
    for corpus in ("one", "two", "one"):
        (tmp_path / corpus / "dev").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{corpus}.txt").write_text(corpus)
        dataset = module.SpeakerClassifiDataset("train", tmp_path / corpus, tmp_path / f"{corpus}.txt")
        assert dataset.found == str(tmp_path / corpus)
    assert made == ["train", "train"]
    assert len(list(own_cache.iterdir())) == 2


def test_verification_lengths_are_kept_per_corpus_and_measured_in_threads(tmp_path, own_cache):
    module = types.ModuleType("dataset")
    measured = []

    class SpeakerVerifi_train:
        def __init__(self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=12):
            cache = Path(module.__file__).parent / ".wav_lengths" / f"{key_list[0]}_length.pt"
            cache.parent.mkdir(exist_ok=True)
            if not cache.is_file():
                from joblib import delayed

                measured.append(module.Parallel(n_jobs=n_jobs)(delayed(str)(number) for number in range(3)))
                cache.write_text("lengths")

    module.SpeakerVerifi_train = SpeakerVerifi_train
    module.__file__ = "site-packages/dataset.py"
    compat.move_verification_cache(module)
    (tmp_path / "wav").mkdir()
    for _ in range(2):
        module.SpeakerVerifi_train({}, ["Voxceleb1"], [tmp_path / "wav"], "trials.txt")
    assert measured == [["0", "1", "2"]]
    assert [path.name for path in own_cache.iterdir()] == [f"asv-{corpus_key(tmp_path / 'wav')}"]


def test_a_folder_that_was_not_finished_is_not_kept(tmp_path):
    def interrupted():
        with writing_folder(tmp_path / "cache") as folder:
            (folder / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with writing_folder(tmp_path / "cache") as folder:
        (folder / "complete").write_text("complete")
    with writing_folder(tmp_path / "cache") as folder:
        assert (folder / "complete").read_text() == "complete"


def test_a_change_anywhere_below_a_corpus_gives_another_key(tmp_path):
    chapter = tmp_path / "corpus" / "train" / "speaker" / "chapter"
    chapter.mkdir(parents=True)
    (chapter / "up").symlink_to(tmp_path / "corpus")  # a cycle
    (chapter / "nothing").symlink_to(tmp_path / "absent")
    keys = [corpus_key(tmp_path / "corpus")]
    file = chapter / "a.flac"
    for change in (
        lambda: file.write_text("audio"),
        lambda: file.write_text("mended"),
        lambda: os.utime(file, (0, 0)),
        lambda: file.rename(chapter / "b.flac"),
        lambda: (chapter / "b.flac").unlink(),
    ):
        time.sleep(0.01)  # more than a tick of the file system's clock
        change()
        keys.append(corpus_key(tmp_path / "corpus"))
        assert corpus_key(tmp_path / "corpus") == keys[-1]
    assert len(set(keys)) == 6


def test_a_changed_corpus_has_another_key(tmp_path):
    first = corpus_key(tmp_path)
    assert corpus_key(tmp_path) == first
    (tmp_path / "dev").mkdir()
    second = corpus_key(tmp_path)
    write_text(tmp_path / "dev" / "new.wav", "")
    assert len({first, second, corpus_key(tmp_path)}) == 3
    assert [path.name for path in (tmp_path / "dev").iterdir()] == ["new.wav"]


SEARCHES = """\
import time
from downstream_recipes.adaptation import compat

compat.install()
from s3prl.downstream.quesst14_dtw import expert

with expert.ProcessPoolExecutor(max_workers=3) as executor:
    list(executor.map(time.sleep, [0.1] * 3))
    print(*executor._processes, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_search_leaves_no_process_behind():
    process = subprocess.Popen([sys.executable, "-c", SEARCHES], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        assert len(output.readline().split()) == 3
        process.kill()
        process.wait()
        ended, _, _ = select.select([output], [], [], 30)
        assert ended, "a search process is still running"
        assert output.read() == b""


def test_without_s3prl_the_error_names_its_dependency_group(monkeypatch):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^s3prl is not installed: uv sync --group superb$"):
        compat.install.__wrapped__()  # it may have been called before
