"""DPHuBERT's and DPWavLM's .pth: the published fixtures, torchaudio's model as the reference for other shapes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from upstream.checkpoint import load
from upstream.errors import UserError
from upstream.formats import dphubert

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CONV_LAYERS = [(13, 10, 5), (21, 3, 2), (19, 3, 2), (24, 3, 2), (17, 3, 2), (22, 2, 2), (18, 2, 2)]
CONFIG = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": CONV_LAYERS,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 48,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 3,
    "encoder_num_heads": [3, 4, 1],
    "encoder_head_dim": 12,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": [40, 57, 17],
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.05,
    "aux_num_out": None,
    "normalize_waveform": False,
    "extractor_prune_conv_channels": False,
}
WITHOUT_ATTENTION = {"encoder_use_attention": [False, True, True], "encoder_num_heads": [0, 4, 1]}
WITHOUT_FFN = {"encoder_use_feed_forward": [True, False, True], "encoder_ff_interm_features": [40, 0, 17]}
WITHOUT_A_LAYER = {
    "encoder_use_attention": [True, False, False],
    "encoder_use_feed_forward": [True, False, True],
    "encoder_num_heads": [2, 0, 0],
    "encoder_ff_interm_features": [40, 0, 17],
}
PRE_LN = {"encoder_layer_norm_first": True}
LARGE = {**PRE_LN, "extractor_mode": "layer_norm", "extractor_conv_bias": True, "normalize_waveform": True}
VARIANTS = {
    "pruned": {},
    "layer-norm extractor": {"extractor_mode": "layer_norm"},
    "large": LARGE,
    "no attention": WITHOUT_ATTENTION,
    "no feed-forward": WITHOUT_FFN,
    "a whole layer": WITHOUT_A_LAYER,
    "pre-LN without attention": {**PRE_LN, **WITHOUT_ATTENTION},
    "pre-LN without a layer": {**LARGE, **WITHOUT_A_LAYER},
    "unpruned": {"encoder_num_heads": 4, "encoder_ff_interm_features": 64, "encoder_head_dim": None},
}


class Nothing(nn.Module):
    """A sublayer that was pruned: it adds nothing."""

    def forward(self, states: Tensor, **_: Any) -> Any:
        return (torch.zeros_like(states), None) if _ else torch.zeros_like(states)


def reference(config: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """torchaudio's model with its layers cut to `config`, and the scale of the last convolution's channels."""
    from torchaudio.models import wav2vec2_model

    torch.manual_seed(13)
    names = wav2vec2_model.__code__.co_varnames[: wav2vec2_model.__code__.co_argcount]
    uniform = {"encoder_num_heads": 4, "encoder_ff_interm_features": 64}
    model = wav2vec2_model(**{key: value for key, value in {**config, **uniform}.items() if key in names})
    layers = config["encoder_num_layers"]

    def per_layer(key: str, default: Any) -> list[Any]:
        value = config.get(key, default)
        return list(value) if isinstance(value, list) else [value] * layers

    for layer, heads, units, has_attention, has_ffn in zip(
        model.encoder.transformer.layers,
        per_layer("encoder_num_heads", 4),
        per_layer("encoder_ff_interm_features", 64),
        per_layer("encoder_use_attention", True),
        per_layer("encoder_use_feed_forward", True),
        strict=True,
    ):
        width, inner = 48, heads * 12
        attention, ffn = layer.attention, layer.feed_forward
        attention.num_heads = heads
        attention.q_proj, attention.k_proj, attention.v_proj = (nn.Linear(width, inner) for _ in range(3))
        attention.out_proj = nn.Linear(inner, width)
        ffn.intermediate_dense, ffn.output_dense = nn.Linear(width, units), nn.Linear(units, width)
        layer.attention = attention if has_attention else Nothing()
        layer.feed_forward = ffn if has_ffn else Nothing()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scale = torch.rand(CONV_LAYERS[-1][0]) + 0.5
    model.feature_extractor.register_forward_hook(lambda *call: (call[2][0] * scale, call[2][1]))
    return model.eval(), scale


def write(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> Path:
    path = folder / "pruned.pth"
    torch.save({"state_dict": state, "config": config, "distill_linear_projs": {"0.weight": torch.eye(48)}}, path)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_equal_torchaudio(variant, tmp_path, waveforms, lengths) -> None:
    config = {
        key: value
        for key, value in {**CONFIG, **VARIANTS[variant]}.items()
        if value is not None or key == "aux_num_out"
    }
    model, scale = reference(config)
    encoder = load(write(tmp_path, config, {**model.state_dict(), "feature_extractor.dummy_weight": scale}))
    assert encoder.config.feature_scale
    waveforms = waveforms * 0.05
    with torch.no_grad():
        output = encoder(waveforms, lengths)
        for index, length in enumerate(lengths.tolist()):
            waveform = waveforms[index : index + 1, :length]
            if config["normalize_waveform"]:
                waveform = nn.functional.layer_norm(waveform, waveform.shape)
            features, _ = model.feature_extractor(waveform, None)
            theirs = [
                model.encoder.feature_projection(features),
                *model.extract_features(waveform)[0],
                model(waveform)[0],
            ]
            mine = [output.projected, *output.hidden_states[1:], output.last_hidden_state]
            assert len(mine) == len(theirs)
            for ours, reference_state in zip(mine, theirs, strict=True):
                assert (ours[index, : reference_state.shape[1]] - reference_state[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["dphubert_small", "dpwavlm_small"])
def test_published_models_give_their_reference_outputs(name) -> None:
    encoder = load(FIXTURES / f"{name}.pth")
    stored = np.load(FIXTURES / f"{name}.npz")
    lengths = torch.from_numpy(stored["lengths"])
    wavs = [torch.from_numpy(stored[f"wav{index}"]) for index in range(3)]
    with torch.no_grad():
        batch = encoder(nn.utils.rnn.pad_sequence(wavs, batch_first=True), lengths)
        assert batch.frame_lengths.tolist() == stored["frame_lengths"].tolist()
        for index, wav in enumerate(wavs):
            single = encoder(wav[None])
            for layer, expected in enumerate(stored[f"single{index}_hidden_states"]):
                for output, row in ((batch, index), (single, 0)):
                    states = output.hidden_states[layer] if layer else output.projected  # theirs begin with P
                    assert np.abs(states[row, : expected.shape[1]].numpy() - expected[0]).max() < 1e-4


def test_the_published_configuration_is_read_as_it_is() -> None:
    config = load(FIXTURES / "dpwavlm_small.pth").config
    published = json.loads((FIXTURES / "dpwavlm_small.config.json").read_text())
    assert config.attention_heads == ((0, 2, 3), (1,), None, (1, 2))
    assert config.ffn_dims == (40, None, 31, 17)
    assert [list(layer) for layer in config.conv_layers] == published["extractor_conv_layer_config"]
    assert (config.relative_buckets, config.relative_max_distance) == (32, 80)


WAVLM = {
    **{key: value for key, value in CONFIG.items() if key not in ("encoder_num_heads", "encoder_head_dim")},
    "encoder_total_num_heads": [4, 4, 4],
    "encoder_remaining_heads": [[0, 2, 3], [1], [1, 3]],
    "encoder_num_buckets": 32,
    "encoder_max_distance": 80,
}


@pytest.fixture
def wavlm_state(tiny_encoder) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """An encoder of ours of `WAVLM`'s shape and its weights in DPWavLM's layout, every head's gate constant kept."""

    def make(**changes: Any) -> tuple[Any, dict[str, Any]]:
        heads = changes.get("attention_heads", ((0, 2, 3), (1,), (1, 3)))
        encoder = tiny_encoder(
            **{
                "family": "wavlm",
                "conv_layers": tuple(CONV_LAYERS),
                "feature_scale": True,
                "ffn_dims": (40, 57, 17),
                **changes,
                "attention_heads": heads,
            }
        )
        state = dphubert.TABLE.to_foreign(encoder.state_dict())
        for layer, own in enumerate(heads):
            if own:
                key = f"encoder.transformer.layers.{layer}.attention.gru_rel_pos_const"
                whole = torch.full((1, 4, 1, 1), 99.0)
                whole[0, list(own), 0, 0] = state[key]
                state[key] = whole
        return encoder, state

    return make


def test_gates_of_pruned_heads_are_left_out(tmp_path, wavlm_state, waveforms, lengths) -> None:
    encoder, state = wavlm_state()
    again = load(write(tmp_path, WAVLM, state))
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with torch.no_grad():
        assert torch.equal(again(waveforms, lengths).last_hidden_state, encoder(waveforms, lengths).last_hidden_state)


def test_a_table_lost_with_its_layer_is_no_bias(tmp_path, wavlm_state, waveforms) -> None:
    """The published code drops the table with the first layer's attention; later layers then add none."""
    encoder, state = wavlm_state(attention_heads=(None, (1,), (1, 3)))
    del state[dphubert.RELATIVE_TABLE]
    config = {**WAVLM, "encoder_remaining_heads": [[], [1], [1, 3]], "encoder_use_attention": [False, True, True]}
    again = load(write(tmp_path, config, state))
    with torch.no_grad():
        with_table = encoder(waveforms[:1]).last_hidden_state
        encoder.relative_position.weight.zero_()
        expected = encoder(waveforms[:1]).last_hidden_state
        assert torch.equal(again(waveforms[:1]).last_hidden_state, expected)
    assert not torch.allclose(with_table, expected, atol=1e-3)


def test_the_table_is_not_optional_where_its_layer_is_there(tmp_path, wavlm_state) -> None:
    _, state = wavlm_state()
    del state[dphubert.RELATIVE_TABLE]
    with pytest.raises(
        UserError, match=r"missing key encoder\.transformer\.layers\.0\.attention\.rel_attn_embed\.weight$"
    ):
        load(write(tmp_path, WAVLM, state))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"extractor_kind": 1}, "its config has unknown key extractor_kind"),
        ({"encoder_embed_dim": ...}, "its config lacks key encoder_embed_dim"),
        ({"encoder_num_heads": ...}, "its config lacks key encoder_num_heads"),
        ({"extractor_mode": "batch_norm"}, "extractor_mode is 'batch_norm', but it must be one of group_norm"),
        ({"encoder_num_heads": [3, 4]}, "encoder_num_heads has 2 entries, but it must have one for each of 3 layers"),
        ({"encoder_num_heads": [3, 4, "1"]}, r"encoder_num_heads\[2\] is '1', but it must be between 0 and 1024"),
        ({"encoder_num_heads": [3, 4, 10**9]}, r"encoder_num_heads\[2\] is 1000000000"),
        ({"encoder_num_layers": 10**9}, "encoder_num_layers is 1000000000, but it must be between 1 and 1024"),
        ({"encoder_head_dim": 0}, "encoder_head_dim is 0, but it must be between 1 and"),
        ({"encoder_embed_dim": "48"}, "encoder_embed_dim is '48', but it must be between 1 and 65536"),
        ({"encoder_ff_interm_features": [40, 57, 16]}, r"layers\.2\.feed_forward.* has shape"),
        ({"encoder_use_feed_forward": [True, True, False]}, r"unexpected keys .*layers\.2\.feed_forward"),
        ({"extractor_conv_layer_config": [(13, 10)]}, r"conv_layers\[0\] is \(13, 10\), but it must be \(channels"),
    ],
)
def test_a_wrong_configuration_is_a_one_line_error(changes, sentence, tmp_path) -> None:
    model, scale = reference(CONFIG)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    path = write(tmp_path, config, {**model.state_dict(), "feature_extractor.dummy_weight": scale})
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder_total_num_heads": [4, 4, 3]}, "encoder_total_num_heads differs between layers"),
        ({"encoder_total_num_heads": 5}, r"encoder_total_num_heads is 5, but it must be a divisor of 48 channels"),
        ({"encoder_remaining_heads": [[2, 0, 3], [1], [1, 3]]}, r"heads\[0\] is \(2, 0, 3\), but .* a rising list"),
        ({"encoder_remaining_heads": [[0, 2, 4], [1], [1, 3]]}, r"heads\[0\] is \(0, 2, 4\), but .* a rising list"),
        ({"encoder_num_buckets": ...}, "its config lacks key encoder_num_buckets"),
    ],
)
def test_a_wrong_wavlm_configuration_is_a_one_line_error(changes, sentence, tmp_path, wavlm_state) -> None:
    config = {key: value for key, value in {**WAVLM, **changes}.items() if value is not ...}
    with pytest.raises(UserError, match=sentence):
        load(write(tmp_path, config, wavlm_state()[1]))


def test_gates_that_are_not_cut_are_said(tmp_path) -> None:
    model, _ = reference(CONFIG)
    state = {**model.state_dict(), "feature_extractor.conv_layers.0.hard_concrete.log_alpha": torch.ones(13)}
    with pytest.raises(UserError, match=r"still has gates \(1 log_alpha keys\)"):
        load(write(tmp_path, CONFIG, state))


def test_a_configuration_file_has_no_use_here(tmp_path) -> None:
    model, _ = reference(CONFIG)
    path = write(tmp_path, CONFIG, model.state_dict())
    assert not load(path).config.feature_scale  # converted teachers have no dummy_weight
    with pytest.raises(UserError, match="contains its configuration; remove the model_config argument"):
        load(path, model_config=tmp_path / "any.yaml")
