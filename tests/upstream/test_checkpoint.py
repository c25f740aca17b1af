"""Our folders: bit-identical round trips, atomic replacement, and one-line errors for damaged ones."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from upstream.checkpoint import load, save
from upstream.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def same_weights(a, b) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"family": "wavlm", "attention_heads": ((0, 2), None, ()), "ffn_dims": (None, 17, 0), "feature_scale": True},
        {"conv_norm": "layer", "layer_norm_first": True, "normalize_waveform": True, "hidden_dropout": 0.1},
    ],
    ids=["plain", "pruned wavlm", "large"],
)
def test_a_saved_encoder_opens_again_bit_identical(changes, tiny_encoder, tmp_path, waveforms, lengths) -> None:
    encoder = tiny_encoder(**changes).train()
    save(encoder, tmp_path / "exp" / "student", {"README.md": "# Card\n", "figure.png": b"\x89PNG"})
    assert sorted(os.listdir(tmp_path / "exp")) == ["student"]
    assert sorted(os.listdir(tmp_path / "exp" / "student")) == [
        "README.md",
        "config.json",
        "figure.png",
        "model.safetensors",
    ]
    assert (tmp_path / "exp" / "student" / "figure.png").read_bytes() == b"\x89PNG"
    again = load(str(tmp_path / "exp" / "student"))
    assert again.config == encoder.config
    assert same_weights(encoder, again)
    assert not again.training
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in again.parameters())
    with torch.no_grad():
        a, b = encoder.eval()(waveforms, lengths), again(waveforms, lengths)
    assert torch.equal(a.last_hidden_state, b.last_hidden_state)


def test_half_precision_halves_the_file_and_opens_as_float32(tiny_encoder, tmp_path) -> None:
    encoder = tiny_encoder()
    save(encoder, tmp_path / "full")
    save(encoder, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    again = load(tmp_path / "half")
    for name, value in encoder.state_dict().items():
        assert again.state_dict()[name].dtype == torch.float32
        assert torch.equal(again.state_dict()[name], value.half().float())


def test_what_half_precision_cannot_hold_is_not_written(tiny_encoder, tmp_path) -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.layer_norm.weight[0] = 1e6
    with pytest.raises(UserError, match=r"is not written: layer_norm\.weight is not finite in torch\.float16"):
        save(encoder, tmp_path / "student", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_replaced_as_a_whole(tiny_encoder, tmp_path) -> None:
    save(tiny_encoder(), tmp_path / "student", {"old.json": "old"})
    newer = tiny_encoder(ffn_dims=(8, 8, 8))
    save(newer, tmp_path / "student")
    assert same_weights(load(tmp_path / "student"), newer)
    assert sorted(os.listdir(tmp_path / "student")) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["student"]


def test_a_folder_of_something_else_is_never_replaced(tiny_encoder, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("webapp", "page"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "webapp" / "src").mkdir()
    (tmp_path / "page" / "index.html").write_text("x")
    for name in ("thesis", "file", "webapp", "page"):
        with pytest.raises(UserError, match=f"{name} is not replaced: it contains .*, which does not belong"):
            save(tiny_encoder(), tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"
    assert (tmp_path / "webapp" / "src").is_dir()
    assert (tmp_path / "page" / "index.html").exists()
    (tmp_path / "empty").mkdir()
    save(tiny_encoder(), tmp_path / "empty")
    assert load(tmp_path / "empty").config == tiny_encoder().config


def test_extra_files_stay_in_the_folder(tiny_encoder, tmp_path) -> None:
    for name in ("../outside", "/outside", "a/b"):
        with pytest.raises(UserError, match="is not a plain file name"):
            save(tiny_encoder(), tmp_path / "student", {name: "x"})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_a_one_line_error_and_keeps_the_old(tiny_encoder, tmp_path, monkeypatch) -> None:
    old = tiny_encoder()
    save(old, tmp_path / "student")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"student cannot be written: No space left on device"):
        save(tiny_encoder(ffn_dims=(8, 8, 8)), tmp_path / "student")
    assert same_weights(load(tmp_path / "student"), old)
    assert os.listdir(tmp_path) == ["student"]


KILLED_SAVES = """
import os, pathlib, shutil, signal, sys
root, folder = sys.argv[1:]
sys.path.insert(0, root)
from upstream.checkpoint import load, save
old, new = load(f"{folder}/old"), load(f"{folder}/new")

def counted(call):
    def killing(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return killing

for moment in range(100):
    target = f"{folder}/runs/{moment}/student"
    save(old, target, {"README.md": "old"})
    child = os.fork()
    if child == 0:
        left = moment
        os.fsync, shutil.rmtree = counted(os.fsync), counted(shutil.rmtree)
        for name in ("mkdir", "open", "rename"):
            setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
        save(new, target)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    widths = load(target).config.ffn_dims
    save(old, target)
    healed = load(target).config == old.config and os.listdir(f"{folder}/runs/{moment}") == ["student"]
    print(code, widths[0], healed)
    if code == 0:
        break
"""


def test_killed_at_any_moment_old_or_new_opens_and_the_next_save_heals(tiny_encoder, tmp_path) -> None:
    """A child is killed before its n-th call that changes the disk, for every n until it ends by itself."""
    save(tiny_encoder(), tmp_path / "old")
    save(tiny_encoder(ffn_dims=(8, 8, 8)), tmp_path / "new")
    arguments = [sys.executable, "-c", KILLED_SAVES, str(ROOT), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with more threads must not fork
    lines = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    codes, widths, healed = zip(*(line.split() for line in lines), strict=True)
    assert set(codes[:-1]) == {str(-signal.SIGKILL)}
    assert codes[-1] == "0"
    assert list(widths) == sorted(widths)  # "64" is the old one, "8" the new: never back
    assert set(widths) == {"64", "8"}
    assert set(healed) == {"True"}
    assert len(lines) > 8


def damage_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, edit) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


def cut_file(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def huge_header(path: Path) -> None:
    header = json.dumps({"layer_norm.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint: it contains no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors cannot be read"),
    "config is no JSON": (lambda folder: damage_json(folder, "{'a': 1}"), r"config\.json is not JSON \(.*line 1"),
    "config is a list": (
        lambda folder: damage_json(folder, "[1]"),
        r"config\.json contains a list, but it must contain keys",
    ),
    "config nested": (lambda folder: damage_json(folder, "[" * 200_000), r"config\.json is not JSON"),
    "config too large": (lambda folder: damage_json(folder, " " * (2**20 + 1)), r"config\.json has more than 1048576"),
    "config is binary": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"), "not UTF-8 text"),
    "unknown key": (lambda folder: change_config(folder, widht=3), r"config\.json: key widht does not exist"),
    "huge shape": (
        lambda folder: change_config(folder, embed_dim=65520),
        r"has shape .* but the configuration asks for",
    ),
    "empty weights": (lambda folder: cut_file(folder / "model.safetensors", 0), "not a complete safetensors file"),
    "truncated": (lambda folder: cut_file(folder / "model.safetensors", 0.7), "not a complete safetensors file"),
    "huge header": (lambda folder: huge_header(folder / "model.safetensors"), "not a complete safetensors file"),
    "integers": (
        lambda folder: change_weights(folder, lambda state: state.update({"layer_norm.weight": torch.ones(48).long()})),
        r"model\.safetensors: layer_norm\.weight has int64 values, but they must be dense and one of float32",
    ),
    "not finite": (
        lambda folder: change_weights(folder, lambda state: state["layer_norm.weight"].fill_(float("nan"))),
        r"model\.safetensors: layer_norm\.weight has values that are not finite",
    ),
    "key left over": (
        lambda folder: change_weights(folder, lambda state: state.update({"extra": torch.ones(1)})),
        r"model\.safetensors: unexpected key extra$",
    ),
    "key missing": (
        lambda folder: change_weights(folder, lambda state: state.pop("positional.weight_g")),
        r"model\.safetensors: missing key positional\.weight_g$",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_a_one_line_error(name, tiny_encoder, tmp_path) -> None:
    damage, sentence = DAMAGES[name]
    save(tiny_encoder(), tmp_path / "student")
    damage(tmp_path / "student")
    with pytest.raises(UserError, match=sentence) as raised:
        load(tmp_path / "student")
    assert "\n" not in str(raised.value)
    assert "student" in str(raised.value)


def test_a_loaded_encoder_does_not_depend_on_its_file(tiny_encoder, tmp_path) -> None:
    save(tiny_encoder(), tmp_path / "student")
    encoder = load(tmp_path / "student")
    before = encoder.layer_norm.weight.clone()
    cut_file(tmp_path / "student" / "model.safetensors", 0)
    with torch.no_grad():
        encoder.layer_norm.weight.add_(0)
    assert torch.equal(encoder.layer_norm.weight, before)


def test_opening_a_checkpoint_does_not_import_torchs_compiler(tiny_encoder, tmp_path) -> None:
    """Building on the meta device can, which takes longer than everything else of `load`."""
    for family in ("hubert", "wavlm"):
        save(tiny_encoder(family=family), tmp_path / family)
    program = "import sys; from upstream.checkpoint import load; [load(path) for path in sys.argv[1:]];"
    program += "sys.exit('torch._dynamo' in sys.modules)"
    arguments = [sys.executable, "-c", program, str(tmp_path / "hubert"), str(tmp_path / "wavlm")]
    subprocess.run(arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x" * 300, r"x{300} cannot be opened: File name too long"),
        ("x" * 250, "cannot be opened"),  # with what a killed save leaves beside it, longer than a name may be
        ("a\0b", "a b is not the name of a file or folder"),
        ("circle", "not the name of a file or folder|cannot be opened|does not exist"),
    ],
)
def test_a_name_that_no_file_can_have_is_a_one_line_error(name, sentence, tmp_path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / name)
