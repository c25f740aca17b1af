"""Checkpoints of every format: an encoder that runs, or one sentence; nothing in them is executed."""

import copy
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_mutations import FLOATS, NUMBERS, Edit, apply, changed, edits, junk, one_sentence, spoiled, texts
from fuzz_worker import Broken, Target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save as to_safetensors
from torch import Tensor

from upstream.checkpoint import load
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.formats import dphubert, fairseq, huggingface_writing, starhubert

Files = dict[str, bytes]
LAYERS = ((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2))
FAIRSEQ = {
    "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] + [(16,2,2)]",
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "layer_norm_first": False,
    "extractor_mode": "default",
    "conv_bias": False,
    "dropout": 0.1,
    "activation_fn": "gelu",
}
TORCHAUDIO = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [list(layer) for layer in LAYERS],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 24,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": [2, 2],
    "encoder_use_attention": [True, True],
    "encoder_use_feed_forward": [True, True],
    "encoder_head_dim": 12,
    "encoder_ff_interm_features": [32, 32],
    "encoder_layer_norm_first": False,
}


@dataclass(frozen=True)
class Case:
    """The files of a checkpoint, and how they came about."""

    format: str
    done: tuple[Any, ...]
    files: Files = field(repr=False)


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def encoder(**changes: Any) -> SpeechEncoder:
    values: dict[str, Any] = {
        "embed_dim": 24,
        "num_heads": 2,
        "head_dim": 12,
        "attention_heads": ((0, 1),) * 2,
        "ffn_dims": (32,) * 2,
        "conv_layers": LAYERS,
        "positional_kernel": 8,
        "positional_groups": 4,
    }
    torch.manual_seed(0)
    return SpeechEncoder(EncoderConfig(**values | changes)).eval()


def wavlm(**changes: Any) -> SpeechEncoder:
    return encoder(family="wavlm", relative_buckets=8, relative_max_distance=20, **changes)


# --- what a checkpoint is made of, before it is written: its parts, and how they become files

Parts = dict[str, Any]  # "config", "state", and for a folder "preprocessor"


def own(parts: Parts) -> Files:
    return {"config.json": json.dumps(parts["config"]).encode(), "model.safetensors": tensors(parts["state"])}


def hugging_face(parts: Parts) -> Files:
    return {**own(parts), "preprocessor_config.json": json.dumps(parts["preprocessor"]).encode()}


def hugging_face_bin(parts: Parts) -> Files:
    whole = {**hugging_face(parts), "pytorch_model.bin": saved(parts["state"])}
    return {name: content for name, content in whole.items() if name != "model.safetensors"}


def star(parts: Parts) -> Files:
    settings = yaml.safe_dump({"distiller": parts["config"]}, allow_unicode=True).encode("utf-8", "surrogatepass")
    return {"fuzzed.ckpt": saved({"state_dict": parts["state"]}), "fuzzed.yaml": settings}


def star_alone(parts: Parts) -> Files:
    stored = {"state_dict": parts["state"], "hyper_parameters": {"cfg": {"distiller": parts["config"]}}}
    return {"fuzzed.ckpt": saved(stored)}


def pruned(parts: Parts) -> Files:
    return {"fuzzed.pth": saved({"state_dict": parts["state"], "config": parts["config"]})}


def of_fairseq(parts: Parts) -> Files:
    return {
        "fuzzed.pt": saved({"model": parts["state"], "cfg": {"model": parts["config"], "task": {"normalize": True}}})
    }


def of_fairseq_formerly(parts: Parts) -> Files:
    return {"fuzzed.pt": saved({"model": parts["state"], "args": parts["config"]}, legacy=True)}


def of_s3prl(parts: Parts) -> Files:
    return {"fuzzed.pt": saved({"model_weight": parts["state"], "model_cfg": parts["config"], "task_cfg": {}})}


AS_TEXT = (own, hugging_face, hugging_face_bin, star)


def saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def tensors(state: Any) -> bytes:
    """Of a spoiled state what safetensors can hold."""
    plain = {str(key): value for key, value in state.items() if type(value) is Tensor and value.layout == torch.strided}
    dense = {key: value for key, value in plain.items() if not (value.is_nested or value.is_quantized)}
    held = {key: value for key, value in dense.items() if value.device.type == "cpu" and value.numel() < 2**20}
    return to_safetensors({key: value.contiguous().clone() for key, value in held.items()})


def kinds() -> dict[str, tuple[Parts, Callable[[Parts], Files]]]:
    base, scaled, large = encoder(), encoder(feature_scale=True), encoder(conv_norm="layer", layer_norm_first=True)
    found: dict[str, tuple[Parts, Callable[[Parts], Files]]] = {}
    for name, one in {"own": base, "own, WavLM": wavlm(), "own, pre-LN": large}.items():
        found[name] = {"config": json.loads(json.dumps(one.config.to_dict())), "state": one.state_dict()}, own
    for name, one in {"Hugging Face": base, "Hugging Face, WavLM": wavlm(), "Hugging Face, Large": large}.items():
        config, preprocessor, state = huggingface_writing.write(one)
        parts = {"config": config, "preprocessor": preprocessor, "state": state}
        found[name] = parts, hugging_face
        found[f"{name}, .bin"] = parts, hugging_face_bin
    foreign = fairseq.TABLE.to_foreign(base.state_dict())
    prefixed = {f"{starhubert.PREFIX}{key}": value for key, value in foreign.items()}
    settings = {"config": FAIRSEQ, "state": foreign}
    found |= {"STaR": ({"config": FAIRSEQ, "state": prefixed}, star)}
    found |= {"STaR, alone": ({"config": FAIRSEQ, "state": prefixed}, star_alone)}
    found |= {"fairseq": (settings, of_fairseq), "fairseq, former": (settings, of_fairseq_formerly)}
    found |= {"s3prl": (settings, of_s3prl)}
    bands = {"num_buckets": 8, "max_distance": 20, "relative_position_embedding": True}
    state = fairseq.TABLE.to_foreign(wavlm().state_dict())
    found |= {"fairseq, WavLM": ({"config": FAIRSEQ | bands, "state": state}, of_fairseq)}
    found |= {"DPHuBERT": ({"config": TORCHAUDIO, "state": dphubert.TABLE.to_foreign(scaled.state_dict())}, pruned)}
    heads = {"encoder_total_num_heads": [2, 2], "encoder_remaining_heads": [[0, 1], [0, 1]]}
    heads |= {"encoder_num_buckets": 8, "encoder_max_distance": 20}
    config = {key: value for key, value in TORCHAUDIO.items() if key not in ("encoder_num_heads", "encoder_head_dim")}
    state = dphubert.TABLE.to_foreign(wavlm(feature_scale=True).state_dict())
    return found | {"DPWavLM": ({"config": config | heads, "state": state}, pruned)}


# --- what is done to them

VALUES = junk | st.sampled_from([1, 2, 3, 4, 5, 8, 10, 12, 16, 20, 24, 32, 64, 320]) | st.sampled_from(NUMBERS + FLOATS)


def odd_weights() -> SearchStrategy[Any]:
    """What may stand where a weight should."""
    made = [
        torch.zeros(0),
        torch.zeros(()),
        torch.full((24,), float("nan")),
        torch.full((24, 24), float("inf")),
        torch.zeros(24, dtype=torch.int64),
        torch.zeros(24, 24, dtype=torch.float16),
        torch.zeros(24, 24, dtype=torch.bfloat16).T,
        torch.zeros(24, 24, dtype=torch.complex64),
        torch.zeros(1).expand(24, 24),
        torch.zeros(1).expand(2**20, 2**20),
        torch.eye(24).to_sparse(),
        torch.eye(24).to_sparse_csr(),
        torch.zeros(24, device="meta"),
        torch.zeros(24, 24).as_strided((24, 24), (0, 1)),
        torch.nn.Parameter(torch.zeros(24)),
        torch.quantize_per_tensor(torch.zeros(24), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        Runs(Path.mkdir, Path("ran")),
        Runs(print, "ran"),
    ]
    return st.sampled_from(range(len(made))).map(made.__getitem__) | junk


@st.composite
def spoiled_parts(draw: st.DrawFn, name: str, parts: Parts, write: Callable[[Parts], Files]) -> Case:
    parts, done = {key: dict(value) for key, value in parts.items()}, []
    what = draw(st.sampled_from(["config"] * 3 + ["state", *parts]))
    if what != "state":
        values = VALUES if write in AS_TEXT else VALUES | odd_weights()  # a pickle can put a tensor anywhere
        before, parts[what] = parts[what], draw(spoiled(parts[what], values))
        return Case(name, tuple(changed(before, parts[what])), write(parts))
    state = parts["state"]
    for key in draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=2, unique=True)):
        action = draw(st.sampled_from(["replace", "replace", "remove", "rename", "reshape", "swap"]))
        value, new = state.pop(key), key
        if action == "replace":
            value = draw(odd_weights())
        elif action == "rename":
            new = draw(st.sampled_from([key + "x", key.replace("0", "1"), "", "layers.9.x"]) | texts)
        elif action == "reshape":
            value = value.flatten() if draw(st.booleans()) else value[None]
        elif action == "swap":
            value = draw(st.sampled_from(list(state.values())))
        if action != "remove":
            state[new] = value
        dense = isinstance(value, Tensor) and not value.is_nested  # a nested tensor has no shape
        done.append((action, key, f"{new}: {type(value).__name__} {value.shape if dense else value!s:.80}"))
    return Case(name, tuple(done), write(parts))


@st.composite
def edited_files(draw: st.DrawFn, name: str, files: Files) -> Case:
    """The bytes of one file edited; of an archive also record by record, with the checksums made right."""
    file = draw(st.sampled_from(sorted(files)))
    content, changes = files[file], draw(edits)
    if content[:2] == b"PK" and draw(st.booleans()):
        which, action = draw(st.integers(0, 60)), draw(RECORD_ACTIONS)
        done = (file, f"record {which}", action, changes)
        return Case(name, done, {**files, file: records_edited(content, which, changes, action)})
    return Case(name, (file, changes), {**files, file: apply(content, changes)})


RECORD_ACTIONS = st.sampled_from(["edit"] * 4 + ["drop", "empty", "double", "swap", "rename", "deflate"])


def records_edited(content: bytes, which: int, changes: list[Edit], action: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    at = (
        next((n for n, (name, _) in enumerate(records) if name.endswith("data.pkl")), 0)
        if which < 20
        else which % len(records)
    )
    name, inside = records[at]
    if action == "drop":
        del records[at]
    elif action == "double":
        records.insert(at, (name, inside[:8]))
    elif action == "swap":
        records[at], records[0] = (name, records[0][1]), (records[0][0], inside)
    else:
        records[at] = (name + "x" if action == "rename" else name, b"" if action == "empty" else apply(inside, changes))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if action == "deflate" else zipfile.ZIP_STORED) as archive:
        for name, inside in records:
            archive.writestr(name, inside)
    return file.getvalue()


def check(case: Case) -> None:
    files = case.files
    for name, content in files.items():
        Path(name).write_bytes(content)
    path = next((Path(name) for name in files if name.startswith("fuzzed.") and not name.endswith(".yaml")), Path())
    try:
        opened = load(path.absolute())
    except UserError as error:
        one_sentence(error)
        opened = None
    if sorted(str(file) for file in Path().iterdir()) != sorted(files):
        raise Broken("a checkpoint that left files behind")
    if opened is not None:
        runs(opened)


def runs(opened: SpeechEncoder) -> None:
    """A second of audio gives finite states."""
    if opened.config.frame_count(16_000) > 400:
        return  # strides that make attention over thousands of frames: long, and what the configuration asks for
    if max(float(weight.abs().max()) for weight in opened.state_dict().values() if weight.numel()) > 1e4:
        return  # finite weights may well lead beyond what a float holds
    waveforms = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            output = opened(waveforms)
    except UserError as error:  # such as: too short for one frame
        one_sentence(error)
        return
    if not all(bool(states.isfinite().all()) for states in output.hidden_states):
        raise Broken("an encoder whose states are not finite")


def target(base: Path) -> Target:
    torch.set_num_threads(1)
    made = kinds()
    names = st.sampled_from(sorted(made))
    whole = {name: write(copy.deepcopy(parts)) for name, (parts, write) in made.items()}
    for name, files in whole.items():  # a refusal of the others is for what was done to them
        folder = base / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        load(
            next((folder / file for file in files if file.startswith("fuzzed.") and not file.endswith("yaml")), folder)
        )
    of_parts = names.flatmap(lambda name: spoiled_parts(name, *made[name]))
    of_bytes = names.flatmap(lambda name: edited_files(name, whole[name]))
    raw = st.tuples(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]), st.binary(max_size=200)).map(
        lambda pair: Case("raw", pair, {"fuzzed.pt": b"".join(pair)})
    )
    return Target(of_parts | of_parts | of_bytes | of_bytes | raw, check)
