"""Makers of the files in `test_hostile_files`: each writes into an empty folder and returns the path to open."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from upstream.checkpoint import save
from upstream.formats import dphubert, huggingface, huggingface_writing, starhubert

Maker = Callable[[Path, Any], Path]  # (an empty folder, an encoder's maker) -> what is opened

LAYERS = ((16, 10, 5), *((24, 3, 2),) * 4, *((40, 2, 2),) * 2)
SETTINGS = {
    "conv_feature_layers": "[(16,10,5)]+[(24,3,2)]*4+[(40,2,2)]*2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
}


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def star_state(encoder: Any) -> dict[str, Any]:
    return {f"student_model.{key}": value for key, value in starhubert.TABLE.to_foreign(encoder.state_dict()).items()}


def star(folder: Path, make: Any, edit: Callable[[dict[str, Any]], Any] = lambda state: None, **changes: Any) -> Path:
    """A STaR checkpoint that carries its configuration, its weights edited."""
    state = star_state(make(conv_layers=LAYERS))
    edit(state)
    content = {"state_dict": state, "hyper_parameters": {"cfg": {"distiller": {**SETTINGS, **changes}}}}
    torch.save(content, folder / "star.ckpt")
    return folder / "star.ckpt"


def star_with_yaml(text: str | bytes) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        path = star(folder, make)
        path.with_suffix(".yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make_files


CUBE = "[&b [&a [" + "x, " * 300 + "], " + "*a, " * 300 + "], " + "*b, " * 300 + "]"  # 27 million entries in 4 kB
LISTS: Any = ["x" * 2**20]  # the same as Python lists, of a text of a megabyte
for _ in range(3):
    LISTS = [LISTS] * 300


def cubic_yaml(folder: Path, make: Any) -> Path:
    """A STaR configuration with a single hostile setting."""
    settings = "".join(f"  {key}: '{value}'\n" for key, value in SETTINGS.items() if key != "encoder_layers")
    return star_with_yaml(f"distiller:\n{settings}  encoder_layers: {CUBE}\n")(folder, make)


def weight(value: Any) -> Maker:
    """One weight of a STaR checkpoint replaced."""
    return lambda folder, make: star(
        folder, make, lambda state: state.update({"student_model.layer_norm.weight": value})
    )


def pickled(value: Any, legacy: bool = False, name: str = "model.pth") -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        content = {"state_dict": {"a": value}, "config": {}} if not isinstance(value, list) else value[0]
        torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)
        return folder / name

    return make_files


def ran(folder: Path) -> Path:
    return folder.parent / "code-ran"


def running(function: Any, *arguments: str, **options: Any) -> Maker:
    """A pickle that leaves a file behind if it is run; `{}` in the arguments is that file."""

    def make_files(folder: Path, make: Any) -> Path:
        filled = [argument.format(ran(folder)) for argument in arguments]
        return pickled(Runs(function, *filled), **options)(folder, make)

    return make_files


def running_with(function: Any, *arguments: Any, **options: Any) -> Maker:
    """A pickle that calls a function which torch allows."""
    return pickled(Runs(function, *arguments), **options)


def huggingface_with_bin(folder: Path, make: Any) -> Path:
    config, _, _ = huggingface_writing.write(make(conv_layers=LAYERS))
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"a": Runs(os.system, f"touch {ran(folder)}")}, folder / "pytorch_model.bin")
    return folder


def plain_pickle(folder: Path, make: Any) -> Path:
    (folder / "model.pt").write_bytes(pickle.dumps(Runs(os.system, f"touch {ran(folder)}"), protocol=2))
    return folder / "model.pt"


def rewritten(edit: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int = zipfile.ZIP_STORED) -> Maker:
    """A STaR checkpoint whose archive is written again, record by record."""

    def make_files(folder: Path, make: Any) -> Path:
        path = star(folder, make)
        with zipfile.ZipFile(path) as archive:
            records = [(record.filename, archive.read(record)) for record in archive.infolist()]
        with zipfile.ZipFile(path, "w", compression) as archive:
            for record in records:
                for name, content in edit(*record):
                    archive.writestr(name, content)
        return path

    return make_files


def with_record(name: str) -> Maker:
    return rewritten(
        lambda record, content: [(record, content), *([(name, b"x")] if record.endswith("version") else [])]
    )


def larger_claim(record: str, content: bytes) -> list[tuple[str, bytes]]:
    """Every storage record cut to one byte, while the pickle still claims its full size."""
    return [(record, content[:1] if "/data/" in record else content)]


def bomb_pickle(folder: Path, make: Any) -> Path:
    """A data.pkl beyond any configuration's size, compressed to nothing."""
    path = folder / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2**27))
        archive.writestr("bomb/version", "3")
    return path


def stored_bomb_pickle(folder: Path, make: Any) -> Path:
    path = folder / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bomb/data.pkl", bytes(2**26 + 1))
    return path


def cut(maker: Maker, share: float, file: str = "") -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        path = maker(folder, make)
        target = path / file if file else path
        content = target.read_bytes()
        target.write_bytes(content[: int(len(content) * share)])
        return path

    return make_files


def ours(folder: Path, make: Any) -> Path:
    save(make(), folder / "student")
    return folder / "student"


def ours_with(edit: Callable[[dict[str, Tensor]], Any]) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        path = ours(folder, make)
        state = dict(make().state_dict())
        edit(state)
        save_file({key: value.clone() for key, value in state.items()}, path / "model.safetensors")
        return path

    return make_files


def ours_with_bytes(change: Callable[[bytes], bytes]) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        path = ours(folder, make)
        file = path / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        return path

    return make_files


def header(text: str) -> Maker:
    return ours_with_bytes(lambda _: len(text).to_bytes(8, "little") + text.encode() + bytes(16))


def ours_with_config(text: str) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        path = ours(folder, make)
        (path / "config.json").write_text(text)
        return path

    return make_files


def file_of(content: bytes, name: str = "model.pt") -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make_files


def index_of(name: str) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        config, _, _ = huggingface_writing.write(make(conv_layers=LAYERS))
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        return folder

    return make_files


def dphubert_with(**changes: Any) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        encoder = make(conv_layers=LAYERS, feature_scale=True)
        config = {
            "extractor_mode": "group_norm",
            "extractor_conv_layer_config": [list(layer) for layer in LAYERS],
            "extractor_conv_bias": False,
            "encoder_embed_dim": 48,
            "encoder_pos_conv_kernel": 16,
            "encoder_pos_conv_groups": 4,
            "encoder_num_layers": 3,
            "encoder_num_heads": [4, 4, 4],
            "encoder_ff_interm_features": [64, 64, 64],
            "encoder_layer_norm_first": False,
        }
        content = {"state_dict": dphubert.TABLE.to_foreign(encoder.state_dict()), "config": {**config, **changes}}
        torch.save(content, folder / "pruned.pth")
        return folder / "pruned.pth"

    return make_files


def script_archive(folder: Path, make: Any) -> Path:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "model.pt"))
    return folder / "model.pt"


def legacy_claim(folder: Path, make: Any) -> Path:
    """A former-format pickle that claims a storage of 2**50 elements."""
    path = folder / "model.pt"
    torch.save({"model": {"a": torch.ones(77)}, "cfg": {}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"K\x4d" in content
    path.write_bytes(content.replace(b"K\x4d", b"\x8a\x07" + (2**50).to_bytes(7, "little")))
    return path


ONES = torch.ones(2)  # has no truth value, nor has its comparison with anything
META = torch.empty(48, device="meta")
EXPANDED = torch.zeros(1).expand(2**40)


def shared(folder: Path, make: Any) -> Path:
    """A few kB that claim a gigabyte in the shapes of their configuration: every inner weight is an expanded zero."""

    def edit(state: dict[str, Any]) -> None:
        for key, value in state.items():
            if ".fc" in key:
                state[key] = torch.zeros(1).expand([2**20 if size == 64 else size for size in value.shape])

    return star(folder, make, edit, encoder_ffn_embed_dim=2**20)


def fairseq_with(settings: Any) -> Maker:
    def make_files(folder: Path, make: Any) -> Path:
        state = starhubert.TABLE.to_foreign(make(conv_layers=LAYERS).state_dict())
        torch.save({"model": state, "cfg": settings}, folder / "model.pt")
        return folder / "model.pt"

    return make_files


def own_model_of(config: Any) -> Maker:
    return ours_with_config(json.dumps({"model_type": huggingface.OWN_MODEL_TYPE, "encoder_config": config}))
