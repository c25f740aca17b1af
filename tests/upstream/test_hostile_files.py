# ruff: noqa: E501  # the table of cases reads best with one case a line
"""Files made to do harm: each is refused with one sentence that names it and what was wrong, and nothing of it runs."""

import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from upstream.checkpoint import load, save
from upstream.errors import UserError
from upstream.formats import dphubert, huggingface, starhubert

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


def huggingface_with_bin(folder: Path, make: Any) -> Path:
    config, _, _ = huggingface.write(make(conv_layers=LAYERS))
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
    """Every storage record cut to one byte, while the pickle goes on claiming its whole size."""
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
        config, _, _ = huggingface.write(make(conv_layers=LAYERS))
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


def shared(folder: Path, make: Any) -> Path:
    """A few kB that claim a gigabyte, in just the shapes of their configuration: every inner weight one zero."""

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


ONES = torch.ones(2)  # whose truth, and equality with anything, torch refuses to tell
META = torch.empty(48, device="meta")
EXPANDED = torch.zeros(1).expand(2**40)
CATEGORIES: dict[str, list[tuple[Maker, str]]] = {
    "pickle that calls a function": [
        (running(os.system, "touch {}"), r"model\.pth: refused, its pickle is not weights only \(.*system"),
        (running(eval, "open('{}', 'w')"), r"model\.pth: refused.*eval"),
        (running(exec, "open('{}', 'w')"), r"model\.pth: refused.*exec"),
        (running(os.system, "touch {}", legacy=True), r"model\.pth: refused.*system"),
        (plain_pickle, r"model\.pt: (refused|not a whole PyTorch checkpoint)"),
        (huggingface_with_bin, r"pytorch_model\.bin: refused.*system"),
    ],
    "pickle that opens, loads or imports": [
        (running(open, "{}", name="model.ckpt"), r"model\.ckpt: refused.*open"),
        (running(torch.load, "{}"), r"model\.pth: refused.*torch\.serialization\.load"),
        (running(__import__, "antigravity"), r"model\.pth: refused.*__import__"),
        (running(torch.hub.load, "a/b", "{}"), r"model\.pth: refused.*torch\.hub\.load"),
    ],
    "huge shapes in weights": [
        (weight(EXPANDED), r"'layer_norm\.weight' has shape \(1099511627776,\); the configuration asks for \(40,\)"),
        (shared, r"star\.ckpt: refused, its weights hold \d+ bytes and claim 1\d{9}$"),
        (rewritten(larger_claim), r"star\.ckpt: not a whole PyTorch checkpoint"),
        (legacy_claim, r"model\.pt: not a whole PyTorch checkpoint"),
        (header('{"layer_norm.weight":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
         r"model\.safetensors: not a whole safetensors file"),
        (header('{"layer_norm.weight":{"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,16]}}'),
         r"model\.safetensors: not a whole safetensors file"),
    ],
    "huge shapes in configurations": [
        (lambda folder, make: star(folder, make, encoder_embed_dim=65536), r"star\.ckpt: .* has shape"),
        (lambda folder, make: star(folder, make, encoder_layers=10**12), "encoder_layers is 1000000000000, not a number"),
        (lambda folder, make: star(folder, make, encoder_ffn_embed_dim=10**12), r"1000000000000 is neither null nor"),
        (lambda folder, make: star(folder, make, conv_pos=10**12), "positional_kernel is 1000000000000; it must be"),
        (dphubert_with(encoder_num_layers=10**12), "encoder_num_layers is 1000000000000, not a number of layers"),
        (dphubert_with(encoder_embed_dim=10**12), "encoder_head_dim is 250000000000, not a number"),
        (dphubert_with(extractor_conv_layer_config=[[65536, 65536, 1]] * 7), r"'feature_extractor\..* has shape"),
    ],
    "wrong kinds of values": [
        (weight(torch.ones(40, dtype=torch.int64)), r"'layer_norm\.weight' holds int64 values"),
        (weight(torch.ones(40, dtype=torch.bool)), "holds bool values"),
        (weight(torch.ones(40, dtype=torch.complex64)), "holds complex64 values"),
        (weight(torch.ones(40).to_sparse()), "holds float32 values; allowed are dense"),
        (weight(META), "not a tensor with values"),
        (weight([1.0] * 40), r"'layer_norm\.weight' is a list, not a tensor with values"),
        (weight(None), "is a NoneType, not a tensor"),
    ],
    "settings of kinds that a pickle can hold": [
        (dphubert_with(extractor_mode=["group_norm"]), r"extractor_mode is \['group_norm'\]; allowed are group_norm"),
        (dphubert_with(encoder_num_layers=ONES), "encoder_num_layers is a Tensor that no setting can be"),
        (lambda folder, make: star(folder, make, extractor_mode=[]), r"extractor_mode is \[\]; allowed are default"),
        (lambda folder, make: star(folder, make, layer_norm_first=ONES), "layer_norm_first is a Tensor that no setting"),
        (lambda folder, make: star(folder, make, conv_feature_layers=[[ONES]]), "conv_feature_layers is a list that no setting"),
        (lambda folder, make: star(folder, make, normalize=ONES), "normalize is a Tensor that no setting can be"),
        (fairseq_with(SETTINGS | {"_name": ONES}), "_name is a Tensor that no setting can be"),
        (fairseq_with(ONES), r"model\.pt: its configuration is a Tensor, not a dictionary of settings"),
        (own_model_of([1]), r"config\.json: holds a list, not an object with keys"),
    ],
    "values that are not finite": [
        (weight(torch.full((40,), float("nan"))), r"'layer_norm\.weight' holds values that are not finite"),
        (weight(torch.full((40,), float("-inf"), dtype=torch.float16)), "not finite"),
        (weight(torch.full((40,), 1e300, dtype=torch.float64)), "not finite"),
    ],
    "truncated files": [
        (cut(ours, 0.0, "model.safetensors"), r"model\.safetensors: not a whole safetensors file"),
        (cut(ours, 0.01, "model.safetensors"), r"model\.safetensors: not a whole safetensors file"),
        (cut(ours, 0.99, "model.safetensors"), r"model\.safetensors: not a whole safetensors file"),
        (cut(star, 0.5), r"star\.ckpt: (a damaged archive|not a whole)"),
        (cut(star, 0.999), r"star\.ckpt: (a damaged archive|not a whole)"),
        (cut(pickled(torch.ones(500), legacy=True), 0.6), r"model\.pth: not a whole PyTorch checkpoint"),
        (cut(star, 0.0), r"star\.ckpt: not a PyTorch checkpoint"),
    ],
    "damaged safetensors headers": [
        (header("{"), r"model\.safetensors: not a whole"),
        (header("[]"), r"model\.safetensors: not a whole"),
        (header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'), r"model\.safetensors: not a whole"),
        (header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}'), r"model\.safetensors: not a whole"),
        (header('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'), r"model\.safetensors: not a whole"),
        (ours_with_bytes(lambda content: b"\xff" * 8 + content[8:]), r"model\.safetensors: not a whole"),
    ],
    "paths in archives": [
        (with_record("../outside"), r"star\.ckpt: refused, its archive holds the path '\.\./outside'"),
        (with_record("/etc/outside"), r"refused, its archive holds the path '/etc/outside'"),
        (with_record("star/data/../../../outside"), r"refused, its archive holds the path 'star/data/\.\./"),
    ],
    "paths in an index": [
        (index_of("../outside.bin"), r"index\.json: refused, weight_map names '\.\./outside\.bin'"),
        (index_of("/etc/passwd"), r"refused, weight_map names '/etc/passwd'"),
        (index_of("config.json"), r"refused, weight_map names 'config\.json'"),
        (index_of("absent.bin"), r"absent\.bin: cannot be read \(No such file"),
    ],
    "compressed archives": [
        (rewritten(lambda name, content: [(name, content)], zipfile.ZIP_DEFLATED), r"star\.ckpt: refused, '.*' in its archive is compressed"),
        (bomb_pickle, r"bomb\.pth: refused, 'bomb/data\.pkl' in its archive is compressed"),
        (stored_bomb_pickle, r"bomb\.pth: refused, 'bomb/data\.pkl' in its archive exceeds 67108864 bytes"),
    ],
    "YAML tags": [
        (star_with_yaml("distiller: !!python/object/apply:os.system ['touch x']"), r"star\.yaml: not plain YAML \(could not determine a constructor"),
        (star_with_yaml("!!python/object/new:os.system ['touch x']"), r"star\.yaml: not plain YAML"),
        (star_with_yaml("distiller: !!python/name:os.system"), r"star\.yaml: not plain YAML"),
        (star_with_yaml("a: 1\ndistiller: !config {a: 1}"), r"star\.yaml: not plain YAML \(.*line 2\)"),
    ],
    "YAML bombs": [
        (star_with_yaml("a: &a {x: 1}\nb: &b {<<: [*a, *a]}\ndistiller: {<<: [*b, *b]}"), r"star\.yaml: not plain YAML \(merge keys"),
        (star_with_yaml("[" * 5000), r"star\.yaml: not (plain )?YAML"),
        (star_with_yaml("a: " + "x" * 2**20), r"star\.yaml: larger than 1048576 bytes"),
        (star_with_yaml("l0: &l0 [x, x, x, x]\n" + "".join(f"l{n + 1}: &l{n + 1} [*l{n}, *l{n}, *l{n}]\n" for n in range(60)) + "distiller: *l60"),
         r"star\.yaml: no 'distiller' block"),
    ],
    "YAML of another kind": [
        (star_with_yaml("- 1\n- 2"), r"star\.yaml: holds a list, not a mapping"),
        (star_with_yaml(b"\xff\xfe\x00"), r"star\.yaml: not UTF-8 text"),
        (star_with_yaml("distiller: [1"), r"star\.yaml: not plain YAML"),
        (star_with_yaml(""), r"star\.yaml: holds a NoneType"),
        (star_with_yaml("distiller: 3"), r"star\.yaml: no 'distiller' block"),
    ],
    "code in the convolution string": [
        (lambda folder, make: star(folder, make, conv_feature_layers="__import__('os').system('true')"), "no list of convolutions"),
        (lambda folder, make: star(folder, make, conv_feature_layers="[(1,1,1)]*10**9"), "no list of convolutions"),
        (lambda folder, make: star(folder, make, conv_feature_layers="[(1,1,1)]*999999"), "more than 64 convolutions"),
        (lambda folder, make: star(folder, make, conv_feature_layers={"a": 1}), "conv_feature_layers is a dict that no setting can be"),
        (lambda folder, make: star(folder, make, conv_feature_layers=3), "not a list of"),
    ],
    "JSON bombs": [
        (ours_with_config("[" * 500_000), r"config\.json: not JSON"),
        (ours_with_config('{"a":' * 100_000), r"config\.json: not JSON"),
        (ours_with_config('{"embed_dim": ' + "9" * 5000 + "}"), r"config\.json: (not JSON|'embed_dim' is|missing)"),
        (ours_with_config(" " * (2**20 + 1)), r"config\.json: larger than 1048576"),
    ],
    "keys of another model": [
        (lambda folder, make: star(folder, make, lambda state: state.update({"student_model.x": torch.ones(1)})), r"unknown key student_model\.x$"),
        (lambda folder, make: star(folder, make, lambda state: state.pop("student_model.layer_norm.bias")), r"missing key layer_norm\.bias$"),
        (ours_with(lambda state: state.update({"x": torch.ones(1)})), r"key x that the configuration has no place for"),
        (lambda folder, make: star(folder, make, lambda state: state.update({f"student_model.{n}": 1 for n in range(5000)})), r"unknown keys .* and 4980 more$"),
        (lambda folder, make: star(folder, make, lambda state: state.update({"student_model." + "x" * 10**6: 1})), r"unknown key student_model\.x{80,90}$"),
    ],
    "files that are no checkpoint": [
        (file_of(b"<!DOCTYPE html><title>Google Drive</title>"), r"model\.pt: not a PyTorch checkpoint, it begins with neither"),
        (file_of(b"RIFF\x00\x00\x00\x00WAVEfmt "), r"model\.pt: not a PyTorch checkpoint"),
        (file_of(b"\x80\x02}q\x00."), r"model\.pt: (an unknown kind of checkpoint|not a whole)"),
        (file_of(b"PK\x03\x04" + bytes(100)), r"model\.pt: a damaged archive"),
        (script_archive, r"model\.pt: (not a whole PyTorch checkpoint|refused)"),
        (pickled([{"encoder": {}, "epoch": 3}]), r"model\.pth: an unknown kind of checkpoint, it holds encoder, epoch; known files are STaR"),
        (pickled([[1, 2]]), r"model\.pth: holds a list, not a dictionary"),
    ],
}  # fmt: skip
CASES = [(category, number) for category, cases in CATEGORIES.items() for number in range(len(cases))]


@pytest.fixture
def little_memory():
    """Two more gigabytes of address space than there are: nothing of a claimed size may be allocated."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(("category", "number"), CASES)
def test_refused_with_one_sentence(category, number, tmp_path, tiny_encoder, little_memory) -> None:
    make_files, sentence = CATEGORIES[category][number]
    folder = tmp_path / "given"
    folder.mkdir()
    path = make_files(folder, tiny_encoder)
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    said = str(raised.value)
    assert "\n" not in said
    assert len(said) < 3000
    assert str(folder) in said
    assert not ran(folder).exists()
    assert sorted(str(file) for file in tmp_path.rglob("*")) == before


def test_there_are_enough_categories() -> None:
    assert len(CATEGORIES) >= 12
    assert all(len(cases) >= 3 for cases in CATEGORIES.values())


def test_the_same_files_unharmed_do_open(tmp_path, tiny_encoder) -> None:
    """So that a refusal above is for the harm and not for the rest of the file."""
    for name, maker in {
        "star": star,
        "ours": ours,
        "dphubert": dphubert_with(),
        "again": rewritten(lambda *record: [record]),
    }.items():
        (tmp_path / name).mkdir()
        assert load(maker(tmp_path / name, tiny_encoder)).config.embed_dim == 48
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": Runs(os.getpid)}}, buffer)
    assert torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)["state_dict"]["a"] == os.getpid()
