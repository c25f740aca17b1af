"""s3prl 0.4.18 on a current torch, torchaudio and huggingface_hub: one patch each, only where something is missing.

`install()` patches at once what it can; the rest waits until s3prl imports the module in question, so that no task's
dependencies are needed before the task is.
"""

import argparse
import hashlib
import importlib.util
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torchaudio

from distiller.common.files import cache_folder, writing, writing_folder
from downstream_recipes.adaptation import ctc_datasets, sox_effects, torchaudio_io
from downstream_recipes.adaptation.corpus_key import corpus_key
from downstream_recipes.adaptation.import_hooks import after_import
from upstream import hubconf
from upstream.errors import UserError


@cache
def install() -> None:
    """Adapt this process, once, whether or not s3prl has already been imported.

    Raises:
        UserError: s3prl is not installed.
    """
    if importlib.util.find_spec("s3prl") is None:
        raise UserError("s3prl is not installed: uv sync --group superb")
    patch_audio_files()
    patch_sox_effects()
    patch_hugging_face_hub()
    patch_torch_load()
    patch_torch_save()
    patch_cuda()
    after_import(
        {
            "s3prl.hub": add_upstreams,
            "s3prl.utility.helper": leave_isinstance_alone,
            "s3prl.downstream.ctc.data": complete_ctc,
            "s3prl.downstream.quesst14_dtw.expert": leave_no_searcher_behind,
            "s3prl.downstream.voxceleb1.dataset": move_identification_cache,
            "s3prl.downstream.sv_voxceleb1.dataset": move_verification_cache,
        }
    )


def patch_audio_files() -> None:
    """s3prl chooses an audio backend at import, but torchaudio 2.9 has none, and its `load` needs torchcodec."""
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.__dict__["set_audio_backend"] = lambda backend: None
        if importlib.util.find_spec("torchcodec") is None:
            torchaudio.load = torchaudio_io.load


def patch_sox_effects() -> None:
    """torchaudio 2.9 removed sox_effects; before that, it fails if libsox is not installed."""
    try:
        from torchaudio.sox_effects import apply_effects_tensor  # pyright: ignore[reportMissingImports] - up to 2.8

        apply_effects_tensor(torch.zeros(1, 160), 16_000, [["gain", "-3.0"]])
    except Exception:  # ImportError, or whatever a missing libsox raises in that version
        module = ModuleType("torchaudio.sox_effects")
        module.__dict__["apply_effects_file"] = sox_effects.apply_effects_file
        module.__dict__["apply_effects_tensor"] = sox_effects.apply_effects_tensor
        torchaudio.__dict__["sox_effects"] = sys.modules[module.__name__] = module


def patch_hugging_face_hub() -> None:
    """The runner imports two classes that huggingface_hub 1.0 dropped; only `--hub huggingface` would use them."""
    import huggingface_hub

    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, SimpleNamespace)


def patch_torch_load() -> None:
    """The runner's checkpoints hold its arguments as a Namespace, which weights_only loading must be told is safe."""
    torch.serialization.add_safe_globals([argparse.Namespace])


def patch_torch_save() -> None:
    """The runner overwrites its best checkpoint: a kill or a full disk would lose both the old and the new one."""
    save = torch.save

    def save_atomically(states: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(file, (str, os.PathLike)):
            save(states, file, *args, **kwargs)
            return
        with writing(Path(file)) as unfinished, unfinished.open("wb") as stream:
            try:
                save(states, stream, *args, **kwargs)
            except RuntimeError as error:  # it hides the OSError: it could not close the archive
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    torch.save = save_atomically


def patch_cuda() -> None:
    """ASV moves its mask with .cuda(); without a GPU, make that do nothing."""
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *args, **kwargs: self  # pyright: ignore[reportAttributeAccessIssue] - a method


def add_upstreams(hub: ModuleType) -> None:
    """`-u NAME` is an attribute of s3prl.hub: add our upstreams to s3prl's."""
    for name in hubconf.__all__:
        setattr(hub, name, getattr(hubconf, name))


def leave_isinstance_alone(helper: ModuleType) -> None:
    """s3prl wraps builtins.isinstance for torch < 1.8, again at each run in a process: 2^n calls after n runs."""
    helper.__dict__["hack_isinstance"] = lambda: None


def complete_ctc(data: ModuleType) -> None:
    """The release lacks the datasets of PR and SF. Also, the loader removes num_workers from the configuration, so
    every later split would get the default of 12.
    """
    folder = Path(str(data.__file__)).parent / "corpus"
    for name, dataset in (("libriphone", ctc_datasets.LibriPhoneDataset), ("snips", ctc_datasets.SnipsDataset)):
        if not (folder / f"{name}.py").exists():
            module = ModuleType(f"{data.__package__}.corpus.{name}")
            module.__dict__[dataset.__name__] = dataset
            sys.modules[module.__name__] = module
    load_dataset = data.load_dataset
    data.__dict__["load_dataset"] = lambda split, tokenizer, corpus: load_dataset(split, tokenizer, dict(corpus))


def leave_no_searcher_behind(expert: ModuleType) -> None:
    """When QbE is killed, its search processes would otherwise wait forever for the next query."""
    expert.__dict__["ProcessPoolExecutor"] = partial(ProcessPoolExecutor, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def move_identification_cache(dataset: ModuleType) -> None:
    """SID keeps one set of file lists in site-packages; keep them per corpus in the user's cache."""

    class SpeakerClassifiDataset(dataset.SpeakerClassifiDataset):
        def __init__(self, mode, file_path, meta_data, max_timestep=None):
            split = hashlib.sha256(Path(meta_data).read_bytes()).hexdigest()[:16]
            with writing_folder(cache_folder("superb") / f"sid-{mode}-{corpus_key(file_path)}-{split}") as folder:
                dataset.__dict__["CACHE_PATH"] = str(folder)
                super().__init__(mode, file_path, meta_data, max_timestep)

    dataset.__dict__["SpeakerClassifiDataset"] = SpeakerClassifiDataset


def move_verification_cache(dataset: ModuleType) -> None:
    """ASV keeps the lengths of all files in site-packages, for any corpus, and measures them in 12 processes."""
    import joblib

    def threads(n_jobs: int) -> joblib.Parallel:
        return joblib.Parallel(n_jobs=min(n_jobs, os.cpu_count() or 1), prefer="threads")

    class SpeakerVerifi_train(dataset.SpeakerVerifi_train):
        def __init__(self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=12):
            with writing_folder(cache_folder("superb") / f"asv-{corpus_key(file_path[0])}") as folder:
                dataset.__dict__["__file__"] = str(folder / "dataset.py")  # the cache is a folder beside it
                super().__init__(vad_config, key_list, file_path, meta_data, max_timestep, n_jobs)

    dataset.__dict__["Parallel"] = threads
    dataset.__dict__["SpeakerVerifi_train"] = SpeakerVerifi_train
