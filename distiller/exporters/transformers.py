"""A student as a folder for `transformers`: with its own classes if they support it, otherwise with ours."""

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from distiller.finetuning.recognizer import Recognizer
from distiller.graphs.checks import checked, farthest, temporary_folder, wavs
from upstream import (
    attention,
    config,
    convolution,
    dropout,
    encoder,
    errors,
    extractor,
    families,
    log_mel,
    mel_extractor,
    output,
    positional,
    running_norm,
    streaming,
    waveforms,
)
from upstream.checkpoint import write_folder
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.families import FAMILIES
from upstream.formats import huggingface, huggingface_writing

MODELING = "modeling_speech_encoder"
HEADS = {  # for each family: the class of `transformers` that opens a folder -> the ending of the family's class
    "hubert": {"AutoModelForCTC": "ForCTC", "AutoModelForAudioClassification": "ForSequenceClassification"},
}
HEADS["wavlm"] = HEADS["wav2vec2"] = HEADS["hubert"] | {
    "AutoModelForAudioFrameClassification": "ForAudioFrameClassification",
    "AutoModelForAudioXVector": "ForXVector",
}


def needs_own_code(student: SpeechEncoder) -> bool:
    """Whether the folder must contain its own modelling file (`trust_remote_code`)."""
    return bool(huggingface_writing.obstacles(student.config))


def to_transformers(student: SpeechEncoder, directory: Path, card: str, recognizer: Recognizer | None = None) -> float:
    """Write the folder, open and check it before it is kept; returns the largest difference of any hidden state.

    Args:
        recognizer: whose encoder the student is; then the folder is for `AutoModelForCTC`, and its logits are compared.

    Raises:
        UserError: a deviation above 1e-4, or a disk that refuses.
    """
    own_code = needs_own_code(student)
    files = (_own_files if own_code else _plain_files)(student, recognizer) | {"README.md": card}
    with temporary_folder(directory) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        difference = _difference(student, folder, own_code, recognizer)
    compared = "logits" if recognizer else "hidden states"
    checked(difference, directory, f"transformers' {compared}", "the student's")
    write_folder(directory, files)
    return difference


def _plain_files(student: SpeechEncoder, recognizer: Recognizer | None) -> dict[str, bytes | str]:
    values, preprocessor, state = huggingface_writing.write(student)
    return _files(values, preprocessor, state, student.config.family, recognizer)


def _own_files(student: SpeechEncoder, recognizer: Recognizer | None) -> dict[str, bytes | str]:
    # UniSpeech-SAT and data2vec students use HuBERT's classes, which can hold any encoder
    family = student.config.family if student.config.family in HEADS else "hubert"
    values = huggingface_writing.config_values(student.config) | {
        "architectures": [f"Distilled{FAMILIES[family].transformers_class}"],
        "model_type": huggingface.OWN_MODEL_TYPE,
        "auto_map": auto_map(family),
        "encoder_config": student.config.to_dict(),
    }
    state = huggingface.OWN_TABLE.to_foreign(student.state_dict())
    preprocessor = huggingface_writing.preprocessor(student.config)
    return _files(values, preprocessor, state, family, recognizer) | _own_code()


def auto_map(family: str) -> dict[str, str]:
    """The classes of the folder's own modelling file, by the class of `transformers` that opens them."""
    name = FAMILIES[family].transformers_class.removesuffix("Model")
    classes = {"AutoConfig": "Config", "AutoModel": "Model", **HEADS[family]}
    return {opener: f"{MODELING}.Distilled{name}{ending}" for opener, ending in classes.items()}


def _own_code() -> dict[str, str]:
    """The Python files of an export that needs its own code."""
    modules = (
        attention, config, convolution, dropout, encoder, errors, extractor, families, log_mel, mel_extractor,
        output, positional, running_norm, streaming, waveforms,
    )  # fmt: skip
    code = {Path(inspect.getfile(module)).name: inspect.getsource(module) for module in modules}
    return code | {f"{MODELING}.py": (Path(__file__).parent / f"{MODELING}.py").read_text()}


def has_only_our_code(folder: Path) -> bool:
    """Whether a folder names and contains exactly the Python files of such an export, so that they may be run."""
    code = {str(path.relative_to(folder)): path.read_text(errors="replace") for path in folder.rglob("*.py")}
    named = json.loads((folder / "config.json").read_text()).get("auto_map")
    return code == _own_code() and any(named == auto_map(family) for family in HEADS)


def _files(
    values: dict[str, Any],
    preprocessor: dict[str, Any],
    state: dict[str, Tensor],
    family: str,
    recognizer: Recognizer | None,
) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    if recognizer is not None:
        values = {**values, **_ctc_values(values["architectures"][0], len(recognizer.vocabulary))}
        state = {FAMILIES[family].prefix + name: value for name, value in state.items()}
        state |= {f"lm_head.{name}": value for name, value in recognizer.head.state_dict().items()}
        files |= recognizer.vocabulary.tokenizer_files()
    cpu = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    return files | {
        "config.json": json.dumps(values, indent=1) + "\n",
        "preprocessor_config.json": json.dumps(preprocessor, indent=1) + "\n",
        "model.safetensors": to_safetensors(cpu, metadata={"format": "pt"}),
    }


def _ctc_values(encoder_class: str, tokens: int) -> dict[str, Any]:
    """The values that differ in config.json for the class with a CTC head, or that only it has."""
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}  # the padding is the blank
    loss = {"ctc_zero_infinity": True, "ctc_loss_reduction": "mean", "final_dropout": 0.0}
    return {"architectures": [f"{encoder_class.removesuffix('Model')}ForCTC"], "vocab_size": tokens, **special, **loss}


def _difference(student: SpeechEncoder, folder: Path, own_code: bool, recognizer: Recognizer | None) -> float:
    """Largest difference for single utterances, through the folder's own feature extractor: of any hidden state, or of
    a recogniser's logits."""
    from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC
    from transformers.utils import logging

    progress_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        auto = AutoModel if recognizer is None else AutoModelForCTC
        opener = getattr(_imported(folder), _model_class(folder)) if own_code else auto
        model = opener.from_pretrained(folder).eval()
    finally:
        if progress_bars:
            logging.enable_progress_bar()
    prepare = AutoFeatureExtractor.from_pretrained(folder)
    largest = 0.0
    student.eval()
    with torch.no_grad():
        for waveform in wavs():
            inputs = prepare(waveform.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            if recognizer is not None:
                logits, _ = recognizer.eval()(waveform[None])
                largest = max(largest, farthest(logits, model(**inputs).logits))
                continue
            theirs = model(**inputs, output_hidden_states=True)
            ours = student(waveform[None])
            pairs = zip(ours.hidden_states, theirs.hidden_states, strict=True)
            last = farthest(ours.last_hidden_state, theirs.last_hidden_state)
            largest = max([largest, last, *(farthest(a, b) for a, b in pairs)])
    return largest


def _model_class(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]


def _imported(folder: Path) -> ModuleType:
    """The folder's modelling file as a module.

    `AutoModel` would copy the code into the user's module cache, where nothing should be left.
    """
    name = "exported_speech_encoder"
    for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[loaded]
    location, parts = folder / f"{MODELING}.py", [str(folder)]  # of a package: beside it are the files it imports
    spec = importlib.util.spec_from_file_location(name, location, submodule_search_locations=parts)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
