"""A student as a folder that `transformers` opens: with its own classes where they can hold it, else with ours."""

import inspect
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from upstream import attention, config, encoder, errors, extractor
from upstream.checkpoint import write_folder
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.formats import huggingface, huggingface_writing

MODELING = "modeling_speech_encoder"
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.SpeechEncoderConfig",
    "AutoModel": f"{MODELING}.SpeechEncoderModel",
    "AutoModelForCTC": f"{MODELING}.SpeechEncoderForCTC",
}
TOLERANCE = 1e-4
LENGTHS = (16_000, 11_231, 7_040)  # of the wavs that an export is checked with, in samples


def needs_own_code(student: SpeechEncoder) -> bool:
    """Whether the folder must bring its own modelling file (`trust_remote_code`)."""
    return bool(huggingface_writing.obstacles(student.config))


def to_transformers(student: SpeechEncoder, directory: Path, card: str) -> float:
    """Write the folder, opened and checked before it is kept; returns the largest difference of any hidden state.

    Raises:
        UserError: a deviation above 1e-4, or what the disk refuses.
    """
    own_code = needs_own_code(student)
    files = _own_files(student) if own_code else _plain_files(student)
    files["README.md"] = card
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "export"
        write_folder(trial, files)
        difference = _difference(student, trial, own_code)
    if not difference < TOLERANCE:
        raise UserError(
            f"{directory}: not written, transformers' hidden states differ from the student's by {difference:.2g}"
        )
    write_folder(directory, files)
    return difference


def _plain_files(student: SpeechEncoder) -> dict[str, bytes | str]:
    values, preprocessor, state = huggingface_writing.write(student)
    return _files(values, preprocessor, state)


def _own_files(student: SpeechEncoder) -> dict[str, bytes | str]:
    values = {
        "architectures": ["SpeechEncoderModel"],
        "model_type": huggingface.OWN_MODEL_TYPE,
        "auto_map": AUTO_MAP,
        "encoder_config": student.config.to_dict(),
    }
    state = huggingface.OWN_TABLE.to_foreign(student.state_dict())
    files = _files(values, huggingface_writing.preprocessor(student.config), state)
    return files | _own_code()


def _own_code() -> dict[str, str]:
    """The Python files that an export with code of its own brings along."""
    modules = (attention, config, encoder, errors, extractor)
    code = {Path(inspect.getfile(module)).name: inspect.getsource(module) for module in modules}
    return code | {f"{MODELING}.py": (Path(__file__).parent / f"{MODELING}.py").read_text()}


def has_only_our_code(folder: Path) -> bool:
    """Whether a folder that can be opened names and holds the Python files of such an export, which may be run."""
    code = {str(path.relative_to(folder)): path.read_text(errors="replace") for path in folder.rglob("*.py")}
    return code == _own_code() and json.loads((folder / "config.json").read_text()).get("auto_map") == AUTO_MAP


def _files(values: dict[str, Any], preprocessor: dict[str, Any], state: dict[str, Tensor]) -> dict[str, bytes | str]:
    cpu = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    return {
        "config.json": json.dumps(values, indent=1) + "\n",
        "preprocessor_config.json": json.dumps(preprocessor, indent=1) + "\n",
        "model.safetensors": to_safetensors(cpu, metadata={"format": "pt"}),
    }


def test_waveforms() -> list[Tensor]:
    """Three wavs of different lengths, (sample,) each: noise of speech's loudness that swells and fades."""
    generator = torch.Generator().manual_seed(0)
    return [
        0.1 * torch.randn(length, generator=generator) * torch.sin(torch.linspace(0.1, 9.0, length)).abs()
        for length in LENGTHS
    ]


def farthest(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where either holds no finite number, which `max` would pass over."""
    difference = float((ours - theirs).abs().max())
    return difference if math.isfinite(difference) else math.inf


def _difference(student: SpeechEncoder, folder: Path, own_code: bool) -> float:
    """Largest difference of any hidden state of single utterances, through the folder's own feature extractor."""
    from transformers import AutoFeatureExtractor, AutoModel
    from transformers.utils import logging

    progress_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder, trust_remote_code=own_code).eval()
    finally:
        if progress_bars:
            logging.enable_progress_bar()
    prepare = AutoFeatureExtractor.from_pretrained(folder)
    largest = 0.0
    student.eval()
    with torch.no_grad():
        for waveform in test_waveforms():
            inputs = prepare(waveform.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            theirs = model(**inputs, output_hidden_states=True)
            ours = student(waveform[None])
            pairs = zip(ours.hidden_states, theirs.hidden_states, strict=True)
            last = farthest(ours.last_hidden_state, theirs.last_hidden_state)
            largest = max([largest, last, *(farthest(a, b) for a, b in pairs)])
    return largest
