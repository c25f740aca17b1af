"""fairseq's and s3prl's checkpoints against the models of s3prl, which carry fairseq's code for them."""

import argparse
import dataclasses
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from upstream.checkpoint import load
from upstream.errors import UserError
from upstream.formats import fairseq

LAYERS = "[(16,10,5)] + [(24,3,2)] * 4 + [(24,2,2)] * 2"
SMALL = {
    "conv_feature_layers": LAYERS,
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "final_dim": 32,
    "encoder_layerdrop": 0.0,
}
LARGE = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}
VARIANTS = {
    "base": {},
    "large": LARGE,
    "no projection": {"conv_feature_layers": "[(16,10,5)] + 4 * [(24,3,2)] + [(48,2,2)]*2"},
    "layer norm, post-LN": {"extractor_mode": "layer_norm"},
    "odd multiple": {"required_seq_len_multiple": 7},
}


def settings_of(family: str, **changes: Any) -> dict[str, Any]:
    """A whole configuration as the model's own code has it."""
    if family == "wavlm":
        from s3prl.upstream.wavlm.WavLM import WavLMConfig

        own = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 32, "max_distance": 80}
        return {**vars(WavLMConfig()), **SMALL, **own, **changes}
    if family == "hubert":
        from s3prl.upstream.hubert.hubert_model import HubertConfig as Config
    else:
        from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config as Config
    own = {"quantize_targets": True} if family == "wav2vec2" else {"label_rate": 50.0}
    config = Config(**{**SMALL, **own, **changes})
    return {**dataclasses.asdict(config), "_name": family}


def reference(family: str, settings: dict[str, Any]) -> nn.Module:
    """s3prl's model of these settings, its every parameter random."""
    plain = {key: value for key, value in settings.items() if key != "_name"}
    torch.manual_seed(11)
    if family == "wavlm":
        from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

        model = WavLM(WavLMConfig(plain))
    elif family == "hubert":
        from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

        model = HubertModel(HubertConfig(**plain), HubertPretrainingConfig(), [["a", "b", "c"]])
    else:
        from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

        model = Wav2Vec2Model(Wav2Vec2Config(**plain))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def reference_states(family: str, model: nn.Module, waveform: torch.Tensor) -> list[torch.Tensor]:
    """P, F^1..F^L and the last hidden state of one wav, (frame, channel) each."""
    layers: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: layers.append(call[2][0])) for layer in model.encoder.layers]
    with torch.no_grad():
        if family == "wavlm":
            last, _ = model.extract_features(waveform)
            projected, _ = model.extract_features(waveform, ret_conv=True)
        else:
            output = model(waveform, mask=False, features_only=True)
            last = output["x"]
            features = model.layer_norm(model.feature_extractor(waveform).transpose(1, 2))
            projected = features if model.post_extract_proj is None else model.post_extract_proj(features)
    for hook in hooks:
        hook.remove()
    frames = last.shape[1]
    return [projected[0, :frames], *(layer[:frames, 0] for layer in layers[: len(model.encoder.layers)]), last[0]]


def write(form: str, folder: Path, settings: dict[str, Any], state: dict[str, Any], normalize: bool) -> Path:
    """A checkpoint in one of the forms in circulation."""
    path = folder / "model.pt"
    if form == "s3prl":
        content: dict[str, Any] = {"task_cfg": {"normalize": normalize}, "model_cfg": settings, "model_weight": state}
    elif form == "flat":
        content = {"cfg": {**settings, "normalize": normalize}, "model": state}
    elif form == "args":
        content = {"args": argparse.Namespace(**settings, normalize=normalize), "cfg": None, "model": state}
    else:
        content = {"cfg": {"model": settings, "task": {"normalize": normalize}}, "args": None, "model": state}
        content["task_state"] = {"dictionaries": [fairseq_dictionary()]}
        content["optimizer_history"] = [{"lr_scheduler_state": {"best": None}}]
    torch.save(content, path)
    return path


def fairseq_dictionary() -> Any:
    """An instance of a class that is not there when the checkpoint is opened."""
    names = ("fairseq", "fairseq.data", "fairseq.data.dictionary")
    modules = {name: types.ModuleType(name) for name in names}
    cls = type("Dictionary", (), {"__module__": names[2]})
    modules[names[2]].Dictionary = cls  # type: ignore[attr-defined]
    sys.modules.update(modules)
    made = cls()
    made.symbols, made.count = ["<s>", "a"], [1, 2]
    return made


@pytest.fixture(autouse=True)
def without_fairseq():
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fairseq"]:
        del sys.modules[name]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_states_equal_those_of_the_defining_code(family, variant, tmp_path, waveforms, lengths) -> None:
    pytest.importorskip("s3prl")
    changes = VARIANTS[variant]
    if family == "wavlm" and "required_seq_len_multiple" in changes:
        pytest.skip("WavLM's code has no such setting")
    settings = settings_of(family, **changes)
    model = reference(family, settings)
    normalize = variant == "large"
    encoder = load(write("s3prl", tmp_path, settings, model.state_dict(), normalize))
    assert encoder.config.family == family
    waveforms = waveforms * 0.02  # quiet, so that what is added to the variance shows
    with torch.no_grad():
        output = encoder(waveforms, lengths)
    for index, length in enumerate(lengths.tolist()):
        waveform = waveforms[index : index + 1, :length]
        theirs = reference_states(family, model, F.layer_norm(waveform, waveform.shape) if normalize else waveform)
        mine = [output.projected, *output.hidden_states[1:], output.last_hidden_state]
        assert len(mine) == len(theirs)
        frames = int(output.frame_lengths[index])
        for ours, reference_state in zip(mine, theirs, strict=True):
            assert reference_state.shape[0] == frames
            assert (ours[index, :frames] - reference_state).abs().max() < 1e-4


def test_frames_beyond_a_multiple_are_dropped(tmp_path, waveforms, lengths) -> None:
    """wav2vec 2.0's crop_seq_to_multiple: 49, 34 and 21 frames become 48, 32 and 16."""
    pytest.importorskip("s3prl")
    settings = settings_of("wav2vec2", crop_seq_to_multiple=16)
    model = reference("wav2vec2", settings)
    encoder = load(write("fairseq", tmp_path, settings, model.state_dict(), False))
    with torch.no_grad():
        output = encoder(waveforms, lengths)
    assert output.frame_lengths.tolist() == [48, 32, 16]
    assert output.projected.shape[1] == 48
    for index, length in enumerate(lengths.tolist()):
        theirs = reference_states("wav2vec2", model, waveforms[index : index + 1, :length])[-1]
        assert theirs.shape[0] == output.frame_lengths[index]
        assert (output.last_hidden_state[index, : theirs.shape[0]] - theirs).abs().max() < 1e-4
    assert encoder.config.min_samples == 400 + 15 * 320
    with pytest.raises(UserError, match="5199 samples, but it must have at least 5200"):
        encoder(waveforms[:, :5199])


def plain_settings(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "dropout": 0.1, "mask_prob": 0.65, **changes}


def plain_state(tiny_encoder, family: str = "hubert", **changes: Any) -> dict[str, Any]:
    """fairseq's layout of a random encoder of ours with `plain_settings`, and the heads of its training."""
    layers = ((16, 10, 5), *((24, 3, 2),) * 4, *((24, 2, 2),) * 2)
    encoder = tiny_encoder(family=family, conv_layers=layers, **changes)
    state = fairseq.TABLE.to_foreign(encoder.state_dict())
    if changes.get("conv_norm") == "layer":  # conv_layers.0.2.weight, a group norm's, becomes conv_layers.0.2.1.weight
        state = {re.sub(r"(conv_layers\.\d+\.2)\.(\w+)$", r"\1.1.\2", name): value for name, value in state.items()}
    heads = {"mask_emb": torch.ones(48), "final_proj.weight": torch.ones(32, 48), "label_embs_concat": torch.ones(5)}
    return {**state, **heads}


FORMS = ["fairseq", "args", "flat", "s3prl"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_every_form_opens(form, family, tmp_path, tiny_encoder) -> None:
    state = plain_state(tiny_encoder, family)
    settings = plain_settings(**({"num_buckets": 32, "max_distance": 80} if family == "wavlm" else {}))
    if family == "wav2vec2":
        state["quantizer.vars"] = torch.ones(1, 8, 4)
    encoder = load(write(form, tmp_path, settings, state, normalize=True))
    assert encoder.config.family == family
    assert encoder.config.normalize_waveform is True
    assert encoder.config.normalize_eps == 1e-5
    assert encoder.config.hidden_dropout == 0.1
    for name, value in fairseq.TABLE.to_foreign(encoder.state_dict()).items():
        assert torch.equal(value, state[name])


def test_layer_norms_of_the_extractor_have_their_own_names(tmp_path, tiny_encoder) -> None:
    state = plain_state(tiny_encoder, conv_norm="layer", conv_bias=True, layer_norm_first=True)
    assert "feature_extractor.conv_layers.6.2.1.weight" in state
    encoder = load(write("fairseq", tmp_path, plain_settings(**LARGE), state, normalize=False))
    assert (encoder.config.conv_norm, encoder.config.layer_norm_first) == ("layer", True)
    norm = encoder.feature_extractor.conv_layers[6].layer_norm
    assert torch.equal(norm.weight, state["feature_extractor.conv_layers.6.2.1.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"activation_fn": "relu"}, "activation_fn is 'relu', but it must be 'gelu'"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer', but it must be 'transformer'"),
        ({"pos_conv_depth": 5}, "pos_conv_depth is 5, but it must be 1"),
        ({"extractor_mode": "batch"}, "extractor_mode is 'batch', but it must be one of default, layer_norm"),
        ({"encoder_layers": 10**9}, "encoder_layers is 1000000000, but it must be between 1 and 1024"),
        ({"encoder_layers": True}, "encoder_layers is True"),
        (
            {"encoder_attention_heads": 5},
            r"encoder_attention_heads is 5, but it must be a divisor of encoder_embed_dim \(48\)",
        ),
        ({"conv_feature_layers": "__import__('os')"}, "conv_feature_layers is .__import__"),
        ({"conv_pos": 8}, r"encoder\.pos_conv\.0\.weight_g has shape \(1, 1, 16\)"),
        ({"_name": "wav2vec_ctc"}, "is a fine-tuned model; only pre-trained ones"),
        ({"w2v_args": {}}, "a fine-tuned model"),
    ],
)
def test_settings_without_a_counterpart_are_said(change, sentence, tmp_path, tiny_encoder) -> None:
    path = write("fairseq", tmp_path, plain_settings(**change), plain_state(tiny_encoder), normalize=False)
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    assert str(path) in str(raised.value)


def test_unknown_and_missing_keys_are_listed(tmp_path, tiny_encoder) -> None:
    state = plain_state(tiny_encoder)
    del state["encoder.pos_conv.0.weight_g"]
    with pytest.raises(UserError, match=r"missing key encoder\.pos_conv\.0\.weight_g$"):
        load(write("fairseq", tmp_path, plain_settings(), state, normalize=False))
    state = {**plain_state(tiny_encoder), "encoder.adapters.0.weight": torch.ones(1)}
    with pytest.raises(UserError, match=r"unexpected key encoder\.adapters\.0\.weight$"):
        load(write("fairseq", tmp_path, plain_settings(), state, normalize=False))


def test_a_configuration_of_another_kind_is_said(tmp_path, tiny_encoder) -> None:
    torch.save({"model": plain_state(tiny_encoder), "cfg": [1]}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="its configuration is a list, not a dictionary"):
        load(tmp_path / "model.pt")
    torch.save({"model": [1], "cfg": plain_settings()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="its model is a list, not a dictionary of weights"):
        load(tmp_path / "model.pt")


def test_a_configuration_file_has_no_use_here(tmp_path, tiny_encoder) -> None:
    path = write("fairseq", tmp_path, plain_settings(), plain_state(tiny_encoder), normalize=False)
    (tmp_path / "model.yaml").write_text("distiller: {}")
    with pytest.raises(UserError, match="contains its configuration; remove the model_config argument"):
        load(path, model_config=tmp_path / "model.yaml")
    assert math.isfinite(float(load(path).layer_norm.weight.detach().sum()))
