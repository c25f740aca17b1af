"""Hugging Face folders against `transformers` itself, on tiny random checkpoints of every family and type."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from upstream.checkpoint import load
from upstream.errors import UserError
from upstream.families import FAMILIES

TOLERANCE = 1e-4
CONVOLUTIONAL = [name for name, family in FAMILIES.items() if not family.whisper]


def normalized(waveform: Tensor) -> Tensor:
    return (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_a_padded_batch_equals_transformers_on_each_wav_alone(
    family, large, huggingface_folder, waveforms, lengths
) -> None:
    model, folder = huggingface_folder(family, large)
    encoder = load(folder)
    with torch.no_grad():
        batch = encoder(waveforms, lengths)
        for index, length in enumerate(lengths.tolist()):
            waveform = waveforms[index : index + 1, :length]
            single = encoder(waveform)
            prepared = normalized(waveform) if encoder.config.normalize_waveform else waveform
            theirs = model(prepared, output_hidden_states=True)
            projection = model.feature_projection(model.feature_extractor(prepared).transpose(1, 2))
            projected = projection[0] if isinstance(projection, tuple) else projection
            frames = int(single.frame_lengths)
            assert frames == int(batch.frame_lengths[index]) == theirs.last_hidden_state.shape[1]
            # transformers 5 lists F^0..F^L and keeps a pre-LN model's final norm to last_hidden_state
            references = [*theirs.hidden_states, theirs.last_hidden_state, projected]
            for output, row in ((single, 0), (batch, index)):
                ours = [*output.hidden_states, output.last_hidden_state, output.projected]
                assert len(ours) == len(references)
                for mine, reference in zip(ours, references, strict=True):
                    assert (mine[row, :frames] - reference[0]).abs().max() < TOLERANCE
    assert encoder.config.normalize_waveform == (large or family == "data2vec-audio")
    if encoder.config.layer_norm_first:
        assert not torch.allclose(batch.hidden_states[-1], batch.last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_attention_maps_equal_eager_attention(family, large, huggingface_folder, waveforms) -> None:
    model, folder = huggingface_folder(family, large, normalize=False)
    with torch.no_grad():
        output = load(folder)(waveforms[:1], attention_maps=True)
        theirs = model(waveforms[:1], output_attentions=True).attentions
    assert output.attention_maps is not None
    assert len(output.attention_maps) == len(theirs) == 3
    for mine, reference in zip(output.attention_maps, theirs, strict=True):
        assert mine is not None
        if family == "wavlm":  # torch's attention function gives `transformers` the mean over heads only
            mine = mine.mean(dim=1, keepdim=True).expand_as(reference)
        assert (mine - reference).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("large", "normalize", "expected"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_normalize_waveform_needs_the_file_and_a_layer_norm_extractor(
    large, normalize, expected, huggingface_folder, waveforms
) -> None:
    model, folder = huggingface_folder("hubert", large, normalize=normalize)
    encoder = load(folder)
    assert encoder.config.normalize_waveform is expected
    waveform = waveforms[:1] * 7 + 3
    with torch.no_grad():
        reference = model(normalized(waveform) if expected else waveform).last_hidden_state
        assert (encoder(waveform).last_hidden_state - reference).abs().max() < TOLERANCE


def test_without_a_preprocessor_file_normalisation_is_off_with_one_warning(huggingface_folder) -> None:
    _, folder = huggingface_folder("hubert", True, normalize=None)
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json is missing") as warned:
        assert load(folder).config.normalize_waveform is False
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("hubert", "ForCTC"),
        ("hubert", "ForSequenceClassification"),
        ("wav2vec2", "ForCTC"),
        ("wav2vec2", "ForPreTraining"),
        ("wavlm", "ForCTC"),
        ("wavlm", "ForXVector"),
        ("unispeech-sat", "ForCTC"),
        ("unispeech-sat", "ForPreTraining"),
        ("data2vec-audio", "ForCTC"),
        ("data2vec-audio", "ForXVector"),
    ],
)
def test_the_encoder_is_found_under_a_head(family, head, huggingface_folder, waveforms) -> None:
    model, folder = huggingface_folder(family, False, head, use_weighted_layer_sum=True)
    inner = getattr(model, family.replace("-", "_"))
    with torch.no_grad():
        prepared = normalized(waveforms[:1]) if family == "data2vec-audio" else waveforms[:1]
        reference = inner(prepared).last_hidden_state
        assert (load(folder)(waveforms[:1]).last_hidden_state - reference).abs().max() < TOLERANCE


def test_distilhubert_has_no_norm_in_front_of_the_projection(huggingface_folder, waveforms) -> None:
    model, folder = huggingface_folder("hubert", False, feat_proj_layer_norm=False, num_hidden_layers=2)
    encoder = load(folder)
    assert encoder.feature_projection.layer_norm is None
    with torch.no_grad():
        theirs = model(waveforms[:1], output_hidden_states=True).hidden_states
        mine = encoder(waveforms[:1]).hidden_states
    assert max((a - b).abs().max() for a, b in zip(mine, theirs, strict=True)) < TOLERANCE


def as_weight_g_and_v(state: dict[str, Tensor]) -> None:
    for number, letter in ((0, "g"), (1, "v")):
        name = "encoder.pos_conv_embed.conv."
        state[f"{name}weight_{letter}"] = state.pop(f"{name}parametrizations.weight.original{number}")


def to_bin(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def to_legacy_bin(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    path.unlink()


def to_shards(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = sorted(load_file(path).items())
    halves = {"model-00001-of-00002.safetensors": state[::2], "model-00002-of-00002.safetensors": state[1::2]}
    for name, half in halves.items():
        save_file(dict(half), folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, half in halves.items() for key, _ in half}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()


def to_old_spelling(folder: Path) -> None:
    edit_weights(folder, as_weight_g_and_v)


@pytest.mark.parametrize("rewrite", [to_bin, to_legacy_bin, to_shards, to_old_spelling])
def test_other_spellings_give_the_same_weights(rewrite, huggingface_folder) -> None:
    _, folder = huggingface_folder("wavlm", False)
    before = load(folder).state_dict()
    rewrite(folder)
    after = load(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_key_under_two_spellings_is_refused(huggingface_folder) -> None:
    _, folder = huggingface_folder("hubert", False)
    name = "encoder.pos_conv_embed.conv.weight_g"
    edit_weights(folder, lambda state: state.update({name: torch.ones(1, 1, 16)}))
    with pytest.raises(UserError, match=r"weight(_g|\.original0) occurs twice"):
        load(folder)


def test_unknown_and_missing_keys_are_listed(huggingface_folder) -> None:
    _, folder = huggingface_folder("hubert", False)
    edit_weights(folder, lambda state: state.update({"encoder.new_gate": torch.ones(1), "encoder.b": torch.ones(1)}))
    with pytest.raises(UserError, match=r"model\.safetensors: unexpected keys encoder\.b, encoder\.new_gate$"):
        load(folder)
    _, folder = huggingface_folder("hubert", False)
    edit_weights(folder, lambda state: [state.pop(key) for key in list(state) if "pos_conv" in key])
    with pytest.raises(UserError, match=r"missing keys encoder\.pos_conv_embed\.conv\.bias, .*original0, .*original1$"):
        load(folder)


def test_a_layer_beyond_the_configuration_is_refused(huggingface_folder) -> None:
    _, folder = huggingface_folder("hubert", False)
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"unexpected keys encoder\.layers\.2\."):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("conv_pos_batch_norm", True, "conv_pos_batch_norm is True, but it must be False"),
        ("add_adapter", True, "add_adapter is True"),
        ("adapter_attn_dim", 16, "adapter_attn_dim is 16, but it must be None"),
        ("hidden_act", "relu", "hidden_act is 'relu', but it must be 'gelu'"),
        ("feat_extract_activation", "gelu_new", "feat_extract_activation is 'gelu_new'"),
        ("model_type", "sew", "model_type is 'sew', but it must be one of .*hubert"),
        ("num_attention_heads", 5, r"num_attention_heads is 5, but it must be a divisor of hidden_size \(48\)"),
        ("num_attention_heads", "4", "num_attention_heads is '4'"),
        ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000"),
        ("conv_stride", [5, 2], "conv_stride is .*, but it must be a list as long as conv_dim"),
        ("conv_dim", 24, "conv_dim is 24, but it must be a list"),
        ("feat_extract_norm", "batch", "conv_norm is 'batch', but it must be one of group, layer"),
        ("hidden_size", 96, "has shape .* but the configuration asks for"),
    ],
)
def test_what_is_not_supported_is_said_in_one_line(key, value, sentence, huggingface_folder) -> None:
    _, folder = huggingface_folder("hubert", False)
    edit_config(folder, **{key: value})
    with pytest.raises(UserError, match=sentence) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("add_adapter", True, "add_adapter is True"),
        ("hidden_act", "relu", "hidden_act is 'relu', but it must be 'gelu'"),
        ("num_conv_pos_embeddings", 0, "positional_layers is 0, but it must be between 1 and 65536"),
        ("num_conv_pos_embeddings", 65, "positional_layers is 65, but it must be at most 64"),
        ("num_conv_pos_embeddings", 2, r"unexpected keys encoder\.pos_conv_embed\.layers\.2\.conv\.bias"),
        ("conv_pos_kernel_size", 5, "has shape .* but the configuration asks for"),
    ],
)
def test_data2vec_settings_are_checked(key, value, sentence, huggingface_folder) -> None:
    _, folder = huggingface_folder("data2vec-audio", False)
    edit_config(folder, **{key: value})
    with pytest.raises(UserError, match=sentence):
        load(folder)


def test_an_index_that_names_a_path_is_refused(huggingface_folder) -> None:
    _, folder = huggingface_folder("hubert", False)
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"encoder.layer_norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"refused: weight_map names '\.\./outside\.safetensors'"):
        load(folder)
