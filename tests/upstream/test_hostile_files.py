# ruff: noqa: E501  # one case per line
"""Hostile files: each is refused with a one-line error that names the file and the reason, and nothing in it runs."""

import codecs
import io
import os
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch._utils import _rebuild_device_tensor_from_cpu_tensor

from tests.upstream.hostile_makers import (
    EXPANDED,
    LISTS,
    META,
    ONES,
    SETTINGS,
    Maker,
    Runs,
    bomb_pickle,
    cubic_yaml,
    cut,
    dphubert_with,
    fairseq_with,
    file_of,
    header,
    huggingface_with_bin,
    index_of,
    larger_claim,
    legacy_claim,
    ours,
    ours_with,
    ours_with_bytes,
    ours_with_config,
    own_model_of,
    pickled,
    plain_pickle,
    ran,
    rewritten,
    running,
    running_with,
    script_archive,
    shared,
    star,
    star_with_yaml,
    stored_bomb_pickle,
    weight,
    with_record,
)
from upstream.checkpoint import load
from upstream.errors import UserError

CATEGORIES: dict[str, list[tuple[Maker, str]]] = {
    "pickle that calls a function": [
        (running(os.system, "touch {}"), r"model\.pth is refused: its pickle is not weights only \(.*system"),
        (running(eval, "open('{}', 'w')"), r"model\.pth is refused: .*eval"),
        (running(exec, "open('{}', 'w')"), r"model\.pth is refused: .*exec"),
        (running(os.system, "touch {}", legacy=True), r"model\.pth is refused: .*system"),
        (plain_pickle, r"model\.pt is (refused|not a complete PyTorch checkpoint)"),
        (huggingface_with_bin, r"pytorch_model\.bin is refused: .*system"),
    ],
    "pickle that opens, loads or imports": [
        (running(open, "{}", name="model.ckpt"), r"model\.ckpt is refused: .*open"),
        (running(torch.load, "{}"), r"model\.pth is refused: .*torch\.serialization\.load"),
        (running(__import__, "antigravity"), r"model\.pth is refused: .*__import__"),
        (running(torch.hub.load, "a/b", "{}"), r"model\.pth is refused: .*torch\.hub\.load"),
    ],
    "pickle that allocates by a number": [
        (running_with(bytearray, 2**32), r"model\.pth is refused: its pickle is not weights only \(it names .*bytearray\)$"),
        (running_with(bytearray, 2**32, legacy=True), r"model\.pth is refused: .*bytearray\)$"),
        (running_with(torch.Tensor, 2**32), r"model\.pth is refused: .*torch.*Tensor\)$"),
        (running_with(torch.UntypedStorage, 2**32), r"model\.pth is refused: .*UntypedStorage\)$"),
        (running_with(set, EXPANDED), r"model\.pth is refused: .*set\)$"),
        (running_with(codecs.encode, Runs(codecs.encode, b"ab", "hex"), "hex"), r"model\.pth is refused: .*encode\)$"),
        (running_with(_rebuild_device_tensor_from_cpu_tensor, EXPANDED, torch.float64, "cpu", False), r"model\.pth is refused: .*from_cpu_tensor\)$"),
    ],
    "huge shapes in weights": [
        (weight(EXPANDED), r"layer_norm\.weight has shape \(1099511627776,\), but the configuration asks for \(40,\)"),
        (shared, r"star\.ckpt is refused: its weights have \d+ bytes but claim 1\d{9}$"),
        (rewritten(larger_claim), r"star\.ckpt is not a complete PyTorch checkpoint"),
        (legacy_claim, r"model\.pt is not a complete PyTorch checkpoint"),
        (header('{"layer_norm.weight":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
         r"model\.safetensors is not a complete safetensors file"),
        (header('{"layer_norm.weight":{"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,16]}}'),
         r"model\.safetensors is not a complete safetensors file"),
    ],
    "huge shapes in configurations": [
        (lambda folder, make: star(folder, make, encoder_embed_dim=65536), r"star\.ckpt: .* has shape"),
        (lambda folder, make: star(folder, make, encoder_layers=10**12), "encoder_layers is 1000000000000, but it must be between"),
        (lambda folder, make: star(folder, make, encoder_ffn_embed_dim=10**12), r"ffn_dims\[0\] is 1000000000000, but it must be null or"),
        (lambda folder, make: star(folder, make, conv_pos=10**12), "positional_kernel is 1000000000000, but it must be"),
        (dphubert_with(encoder_num_layers=10**12), "encoder_num_layers is 1000000000000, but it must be between 1 and 1024"),
        (dphubert_with(encoder_embed_dim=10**12), "encoder_embed_dim is 1000000000000, but it must be between"),
        (dphubert_with(extractor_conv_layer_config=[[65536, 65536, 1]] * 7), r"feature_extractor\..* has shape"),
    ],
    "wrong kinds of values": [
        (weight(torch.ones(40, dtype=torch.int64)), r"layer_norm\.weight has int64 values"),
        (weight(torch.ones(40, dtype=torch.bool)), "has bool values"),
        (weight(torch.ones(40, dtype=torch.complex64)), "has complex64 values"),
        (weight(torch.ones(40).to_sparse()), "has float32 values, but they must be dense"),
        (weight(META), "but it must be a tensor with values"),
        (weight([1.0] * 40), r"layer_norm\.weight is a list, but it must be a tensor with values"),
        (weight(None), "is a NoneType, but it must be a tensor"),
    ],
    "settings of kinds that a pickle can hold": [
        (dphubert_with(extractor_mode=["group_norm"]), r"extractor_mode is \['group_norm'\], but it must be one of group_norm"),
        (dphubert_with(encoder_num_layers=ONES), "encoder_num_layers is a Tensor, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, extractor_mode=[]), r"extractor_mode is \[\], but it must be one of default"),
        (lambda folder, make: star(folder, make, layer_norm_first=ONES), "layer_norm_first is a Tensor, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, conv_feature_layers=[[ONES]]), "conv_feature_layers is a list, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, normalize=ONES), "normalize is a Tensor, but it must be a number, a text or"),
        (fairseq_with(SETTINGS | {"_name": ONES}), "_name is a Tensor, but it must be a number, a text or"),
        (fairseq_with(ONES), r"model\.pt: its configuration is a Tensor, not a dictionary of settings"),
        (own_model_of([1]), r"config\.json: holds a list, but it must hold an object with keys"),
    ],
    "values that are not finite": [
        (weight(torch.full((40,), float("nan"))), r"layer_norm\.weight has values that are not finite"),
        (weight(torch.full((40,), float("-inf"), dtype=torch.float16)), "not finite"),
        (weight(torch.full((40,), 1e300, dtype=torch.float64)), "not finite"),
    ],
    "truncated files": [
        (cut(ours, 0.0, "model.safetensors"), r"model\.safetensors is not a complete safetensors file"),
        (cut(ours, 0.01, "model.safetensors"), r"model\.safetensors is not a complete safetensors file"),
        (cut(ours, 0.99, "model.safetensors"), r"model\.safetensors is not a complete safetensors file"),
        (cut(star, 0.5), r"star\.ckpt is not a complete"),
        (cut(star, 0.999), r"star\.ckpt is not a complete"),
        (cut(pickled(torch.ones(500), legacy=True), 0.6), r"model\.pth is not a complete PyTorch checkpoint"),
        (cut(star, 0.0), r"star\.ckpt is not a PyTorch checkpoint"),
    ],
    "damaged safetensors headers": [
        (header("{"), r"model\.safetensors is not a complete"),
        (header("[]"), r"model\.safetensors is not a complete"),
        (header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'), r"model\.safetensors is not a complete"),
        (header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}'), r"model\.safetensors is not a complete"),
        (header('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'), r"model\.safetensors is not a complete"),
        (ours_with_bytes(lambda content: b"\xff" * 8 + content[8:]), r"model\.safetensors is not a complete"),
    ],
    "paths in archives": [
        (with_record("../outside"), r"star\.ckpt is refused: its archive contains the path '\.\./outside'"),
        (with_record("/etc/outside"), r"refused: its archive contains the path '/etc/outside'"),
        (with_record("star/data/../../../outside"), r"refused: its archive contains the path 'star/data/\.\./"),
    ],
    "paths in an index": [
        (index_of("../outside.bin"), r"index\.json is refused: weight_map names '\.\./outside\.bin'"),
        (index_of("/etc/passwd"), r"refused: weight_map names '/etc/passwd'"),
        (index_of("config.json"), r"refused: weight_map names 'config\.json'"),
        (index_of("absent.bin"), r"absent\.bin cannot be read: No such file"),
    ],
    "compressed archives": [
        (rewritten(lambda name, content: [(name, content)], zipfile.ZIP_DEFLATED), r"star\.ckpt is refused: '.*' in its archive is compressed"),
        (bomb_pickle, r"bomb\.pth is refused: 'bomb/data\.pkl' in its archive is compressed"),
        (stored_bomb_pickle, r"bomb\.pth is refused: 'bomb/data\.pkl' in its archive has more than 67108864 bytes"),
    ],
    "YAML tags": [
        (star_with_yaml("distiller: !!python/object/apply:os.system ['touch x']"), r"star\.yaml is not plain YAML \(could not determine a constructor"),
        (star_with_yaml("!!python/object/new:os.system ['touch x']"), r"star\.yaml is not plain YAML"),
        (star_with_yaml("distiller: !!python/name:os.system"), r"star\.yaml is not plain YAML"),
        (star_with_yaml("a: 1\ndistiller: !config {a: 1}"), r"star\.yaml is not plain YAML \(.*line 2\)"),
        (star_with_yaml("distiller: !!bool maybe"), r"star\.yaml is not plain YAML \('maybe'\)"),
        (star_with_yaml("distiller: !!timestamp now"), r"star\.yaml is not plain YAML"),
    ],
    "YAML bombs": [
        (star_with_yaml("a: &a {x: 1}\nb: &b {<<: [*a, *a]}\ndistiller: {<<: [*b, *b]}"), r"star\.yaml is not plain YAML \(merge keys"),
        (star_with_yaml("[" * 5000), r"star\.yaml is not plain YAML"),
        (star_with_yaml("a: " + "x" * 2**20), r"star\.yaml has more than 1048576 bytes"),
        (star_with_yaml("l0: &l0 [x, x, x, x]\n" + "".join(f"l{n + 1}: &l{n + 1} [*l{n}, *l{n}, *l{n}]\n" for n in range(60)) + "distiller: *l60"),
         r"star\.yaml has no 'distiller' block"),
    ],
    "lists that name each other": [
        (cubic_yaml, r"star\.yaml: encoder_layers is a list, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, encoder_layers=LISTS), "encoder_layers is a list, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, encoder_layers=LISTS[0]), "encoder_layers is a list, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, encoder_layers=LISTS[0][0] * 9), r"encoder_layers is \[\['x+\.\.\.x+'\], .*, but it must be between"),
        (lambda folder, make: star(folder, make, extractor_mode=LISTS[0][0] * 9), r"extractor_mode is \[\['x+\.\.\.x+'\], .*, but it must be one of default"),
        (dphubert_with(encoder_num_layers=LISTS[0][0] * 9), r"encoder_num_layers is \[\['x+\.\.\.x+'\], .*, but it must be between"),
    ],
    "YAML of another kind": [
        (star_with_yaml("- 1\n- 2"), r"star\.yaml contains a list, but it must contain keys"),
        (star_with_yaml(b"\xff\xfe\x00"), r"star\.yaml is not UTF-8 text"),
        (star_with_yaml("distiller: [1"), r"star\.yaml is not plain YAML"),
        (star_with_yaml(""), r"star\.yaml contains a NoneType"),
        (star_with_yaml("distiller: 3"), r"star\.yaml has no 'distiller' block"),
    ],
    "code in the convolution string": [
        (lambda folder, make: star(folder, make, conv_feature_layers="__import__('os').system('true')"), "but it must be a list of 1 to 64 triples"),
        (lambda folder, make: star(folder, make, conv_feature_layers="[(1,1,1)]*10**9"), "but it must be a list of 1 to 64 triples"),
        (lambda folder, make: star(folder, make, conv_feature_layers="[(1,1,1)]*999999"), "but it must be a list of 1 to 64 triples"),
        (lambda folder, make: star(folder, make, conv_feature_layers={"a": 1}), "conv_feature_layers is a dict, but it must be a number, a text or"),
        (lambda folder, make: star(folder, make, conv_feature_layers=3), "but it must be a list of 1 to 64 triples"),
    ],
    "JSON bombs": [
        (ours_with_config("[" * 500_000), r"config\.json is not JSON"),
        (ours_with_config('{"a":' * 100_000), r"config\.json is not JSON"),
        (ours_with_config('{"embed_dim": ' + "9" * 5000 + "}"), r"config\.json(: embed_dim is| is not JSON)"),
        (ours_with_config(" " * (2**20 + 1)), r"config\.json has more than 1048576"),
    ],
    "keys of another model": [
        (lambda folder, make: star(folder, make, lambda state: state.update({"student_model.x": torch.ones(1)})), r"unexpected key student_model\.x$"),
        (lambda folder, make: star(folder, make, lambda state: state.pop("student_model.layer_norm.bias")), r"missing key layer_norm\.bias$"),
        (ours_with(lambda state: state.update({"x": torch.ones(1)})), r"unexpected key x$"),
        (lambda folder, make: star(folder, make, lambda state: state.update({f"student_model.{n}": 1 for n in range(5000)})), r"unexpected keys .* and 4980 more$"),
        (lambda folder, make: star(folder, make, lambda state: state.update({"student_model." + "x" * 10**6: 1})), r"unexpected key student_model\.x{80,90}$"),
    ],
    "files that are no checkpoint": [
        (file_of(b"<!DOCTYPE html><title>Google Drive</title>"), r"model\.pt is not a PyTorch checkpoint: it begins with neither"),
        (file_of(b"RIFF\x00\x00\x00\x00WAVEfmt "), r"model\.pt is not a PyTorch checkpoint"),
        (file_of(b"\x80\x02}q\x00."), r"model\.pt is (an unknown kind of checkpoint|not a complete)"),
        (file_of(b"PK\x03\x04" + bytes(100)), r"model\.pt is not a complete PyTorch checkpoint"),
        (script_archive, r"model\.pt is (not a complete PyTorch checkpoint|refused)"),
        (pickled([{"encoder": {}, "epoch": 3}]), r"model\.pth is an unknown kind of checkpoint with encoder, epoch; known files are STaR"),
        (pickled([[1, 2]]), r"model\.pth contains a list, not a dictionary"),
    ],
}  # fmt: skip
CASES = [(category, number) for category, cases in CATEGORIES.items() for number in range(len(cases))]


@pytest.fixture
def little_memory():
    """At most two more gigabytes of address space: no memory may be allocated for claimed sizes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(("category", "number"), CASES)
def test_refused_with_one_line(category, number, tmp_path, tiny_encoder, little_memory) -> None:
    make_files, sentence = CATEGORIES[category][number]
    folder = tmp_path / "given"
    folder.mkdir()
    path = make_files(folder, tiny_encoder)
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    started = time.process_time()
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    assert time.process_time() - started < 6
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
    """The refusals above are not due to the rest of the file."""
    for name, maker in {
        "star": star,
        "ours": ours,
        "dphubert": dphubert_with(),
        "again": rewritten(lambda *record: [record]),
    }.items():
        (tmp_path / name).mkdir()
        assert load(maker(tmp_path / name, tiny_encoder)).config.embed_dim == 48
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": {"a": Runs(os.getpid)}}, buffer
    )  # the payload does run when it is opened without protection
    assert torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)["state_dict"]["a"] == os.getpid()
