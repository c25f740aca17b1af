"""The STaR authors' .ckpt with its .yaml: the published fixtures, and checkpoints of other shapes built here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from upstream.checkpoint import load
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.formats import starhubert

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DISTILLER = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(16,10,5)]+[(24,3,2)]*4+[(40,2,2)]*2",
    "conv_bias": False,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "pos_conv_depth": 1,
    "layer_type": "transformer",
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "dropout_input": 0.05,
    "required_seq_len_multiple": 1,
    "crop_seq_to_multiple": 1,
}
CONV_LAYERS = ((16, 10, 5), *((24, 3, 2),) * 4, *((40, 2, 2),) * 2)


def student_state(encoder: SpeechEncoder) -> dict[str, Any]:
    state = starhubert.TABLE.to_foreign(encoder.state_dict())
    if encoder.config.conv_norm == "layer":
        state = {
            name.replace(".2.weight", ".2.1.weight").replace(".2.bias", ".2.1.bias")
            if "conv_layers" in name
            else name: value
            for name, value in state.items()
        }
    return {f"student_model.{name}": value for name, value in state.items()}


def write(folder: Path, state: dict[str, Any], distiller: Any = None, place: str = "yaml") -> Path:
    path = folder / "star.ckpt"
    content = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.7.7", "state_dict": state}
    values = {"model": "starhubert", "train": {"num_epochs": 200}, "distiller": distiller or DISTILLER}
    if place == "checkpoint":
        content["hyper_parameters"] = {"cfg": values}
    elif place:
        (folder / f"star.{place}").write_text(yaml.safe_dump(values))
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["star_small", "star_small_proj"])
def test_published_models_give_their_reference_outputs(name) -> None:
    encoder = load(FIXTURES / f"{name}.ckpt")
    assert encoder.config.projection is (name == "star_small_proj")
    stored = np.load(FIXTURES / f"{name}.npz")
    wavs = [torch.from_numpy(stored[f"wav{index}"]) for index in range(3)]
    with torch.no_grad():
        batch = encoder(nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.from_numpy(stored["lengths"]))
        assert batch.frame_lengths.tolist() == stored["frame_lengths"].tolist()
        assert np.abs(batch.hidden_states[0][0].numpy() - stored["pre_trf"][0]).max() < 1e-4
        for index, wav in enumerate(wavs):
            single = encoder(wav[None])
            expected = stored[f"single{index}_hidden_states"]
            assert len(expected) == encoder.config.num_layers
            for layer, states in enumerate(expected, start=1):
                for output, row in ((batch, index), (single, 0)):
                    ours = output.hidden_states[layer][row, : states.shape[1]]
                    assert np.abs(ours.numpy() - states[0]).max() < 1e-4


SHAPES = {
    "group": ({}, {}),
    "layer-norm extractor": (
        {"extractor_mode": "layer_norm", "conv_bias": True},
        {"conv_norm": "layer", "conv_bias": True},
    ),
    "pre-LN": ({"layer_norm_first": True}, {"layer_norm_first": True}),
    "no projection": (
        {"conv_feature_layers": "[(16,10,5)]+[(24,3,2)]*4+[(48,2,2)]*2"},
        {"conv_layers": ((16, 10, 5), *((24, 3, 2),) * 4, *((48, 2, 2),) * 2), "projection": False},
    ),
    "odd multiples": ({"required_seq_len_multiple": 3, "crop_seq_to_multiple": 3}, {"frame_multiple": 3}),
    "WavLM's positions": ({"num_buckets": 32, "max_distance": 80}, {"family": "wavlm"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_opens_with_the_weights_it_was_written_with(
    name, tmp_path, tiny_encoder, waveforms, lengths
) -> None:
    settings, ours = SHAPES[name]
    encoder = tiny_encoder(**{"conv_layers": CONV_LAYERS, **ours})
    state = student_state(encoder)
    state |= {"teacher_model.model.mask_emb": torch.ones(3), "student_model.final_proj.weight": torch.ones(2, 48)}
    again = load(write(tmp_path, state, {**DISTILLER, **settings}))
    for key, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert again.config.feature_dropout == 0.05
    with torch.no_grad():
        mine, theirs = again(waveforms, lengths), encoder(waveforms, lengths)
    assert torch.equal(mine.last_hidden_state, theirs.last_hidden_state)
    assert mine.frame_lengths.tolist() == ([48, 33, 21] if name == "odd multiples" else [49, 34, 21])


def test_the_paper_size_opens(tmp_path) -> None:
    """22,308,592 parameters, by the authors' YAML words."""
    text = "[(128,10,5)]+[(256,1,1)]+[(256,3,2)]*4+[(432,1,1)]+[(432,2,2)]*2"
    config = EncoderConfig(
        embed_dim=432,
        num_heads=12,
        head_dim=36,
        attention_heads=(tuple(range(12)),) * 12,
        ffn_dims=(976,) * 12,
        conv_layers=((128, 10, 5), (256, 1, 1), *((256, 3, 2),) * 4, (432, 1, 1), *((432, 2, 2),) * 2),
        projection=False,
    )
    encoder = SpeechEncoder(config)
    own = {"encoder_layers": 12, "encoder_embed_dim": 432, "encoder_ffn_embed_dim": 976, "encoder_attention_heads": 12}
    settings = {**DISTILLER, **own, "conv_feature_layers": text, "conv_pos": 128, "conv_pos_groups": 16}
    again = load(write(tmp_path, student_state(encoder), settings))
    assert sum(parameter.numel() for parameter in again.parameters()) == 22_308_592
    assert torch.equal(again.layers[11].feed_forward.output.weight, encoder.layers[11].feed_forward.output.weight)


@pytest.mark.parametrize("place", ["yaml", "yml", "checkpoint", "elsewhere"])
def test_the_configuration_is_found_where_it_may_be(place, tmp_path, tiny_encoder) -> None:
    state = student_state(tiny_encoder(conv_layers=CONV_LAYERS))
    if place == "elsewhere":
        path = write(tmp_path, state, place="")
        (tmp_path / "other").mkdir()
        other = tmp_path / "other" / "any-name.yaml"
        other.write_text(yaml.safe_dump({"distiller": DISTILLER}))
        assert load(path, model_config=other).config.embed_dim == 48
        with pytest.raises(UserError, match=r"needs its configuration: star\.yaml beside it, or model_config"):
            load(path)
    else:
        assert load(write(tmp_path, state, place=place)).config.embed_dim == 48


@pytest.mark.parametrize(
    ("distiller", "sentence"),
    [
        ({"encoder_layers": 3}, r"star\.yaml: the distiller block lacks conv_feature_layers, encoder_embed_dim"),
        ("base", r"star\.yaml has no 'distiller' block"),
        ({**DISTILLER, "conv_feature_layers": "open('x')"}, r"star\.yaml: conv_feature_layers is .open"),
        ({**DISTILLER, "pos_conv_depth": 2}, r"star\.yaml: pos_conv_depth is 2, but it must be 1"),
        (
            {**DISTILLER, "encoder_ffn_embed_dim": 65},
            r"star\.ckpt: encoder\.layers\.0\.fc1\.weight has shape \(64, 48\)",
        ),
        ({**DISTILLER, "encoder_layers": 2}, r"star\.ckpt: unexpected keys student_model\.encoder\.layers\.2"),
        ({**DISTILLER, "crop_seq_to_multiple": 0}, "frame_multiple is 0, but it must be between"),
    ],
)
def test_a_wrong_yaml_is_a_one_line_error(distiller, sentence, tmp_path, tiny_encoder) -> None:
    path = write(tmp_path, student_state(tiny_encoder(conv_layers=CONV_LAYERS)), distiller)
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_unknown_and_missing_keys_are_listed(tmp_path, tiny_encoder) -> None:
    state = student_state(tiny_encoder(conv_layers=CONV_LAYERS))
    with pytest.raises(UserError, match=r"unexpected key student_model\.encoder\.gate$"):
        load(write(tmp_path, {**state, "student_model.encoder.gate": torch.ones(1)}))
    del state["student_model.post_extract_proj.weight"]
    with pytest.raises(UserError, match=r"missing key post_extract_proj\.weight$"):
        load(write(tmp_path, state))
