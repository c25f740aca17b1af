"""The encoder as a model of `transformers`, for exports of structures that its own classes lack.

An exported folder contains it, with copies of config.py, encoder.py and their imports; it is not imported here. Open
the folder with `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`, or with AutoModelForCTC and the other
classes of its family: each is the family's own class of `transformers` with this encoder in it.
"""

# pyright: reportIncompatibleMethodOverride=false, reportAttributeAccessIssue=false, reportCallIssue=false
# the types declared by `transformers` differ from those it uses

import copy
from dataclasses import replace

import torch
from torch import nn
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForAudioFrameClassification,
    WavLMForCTC,
    WavLMForSequenceClassification,
    WavLMForXVector,
    WavLMModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, Wav2Vec2BaseModelOutput
from transformers.utils.generic import can_return_tuple

# beside this file in an exported folder; `transformers` copies the files that are named here
from .attention import PositionGate, SelfAttention  # type: ignore[import-not-found]  # noqa: F401
from .config import EncoderConfig  # type: ignore[import-not-found]
from .convolution import Convolution  # type: ignore[import-not-found]  # noqa: F401
from .dropout import Dropout  # type: ignore[import-not-found]  # noqa: F401
from .encoder import EncoderLayer, OutputBias, SpeechEncoder  # type: ignore[import-not-found]
from .errors import UserError  # type: ignore[import-not-found]  # noqa: F401
from .extractor import FeatureExtractor, FeatureProjection  # type: ignore[import-not-found]
from .families import FAMILIES  # type: ignore[import-not-found]  # noqa: F401
from .log_mel import LogMelExtractor  # type: ignore[import-not-found]  # noqa: F401
from .mel_extractor import MelExtractor  # type: ignore[import-not-found]
from .output import EncoderOutput  # type: ignore[import-not-found]  # noqa: F401
from .positional import PositionalConvolution  # type: ignore[import-not-found]
from .running_norm import RunningGroupNorm  # type: ignore[import-not-found]
from .streaming import Stream  # type: ignore[import-not-found]  # noqa: F401
from .waveforms import as_batch  # type: ignore[import-not-found]  # noqa: F401


class RenamedPositionalConvolution(PositionalConvolution):
    """`transformers` renames parameters called weight_g or weight_v, so these have other names."""

    weight_g = property(lambda self: self.magnitude)
    weight_v = property(lambda self: self.direction)

    def __init__(self, config):
        super().__init__(config)
        self._parameters["magnitude"] = self._parameters.pop("weight_g")
        self._parameters["direction"] = self._parameters.pop("weight_v")
        if not self.direction.is_meta:
            self.initialize()


class Freezable(nn.Module):
    """Has the method that `freeze_feature_encoder` calls."""

    def _freeze_parameters(self):
        self.requires_grad_(False)


class FreezableExtractor(Freezable, FeatureExtractor):
    """The convolutions."""


class FreezableMelExtractor(Freezable, MelExtractor):
    """The log-mel front end."""


class Layer(GradientCheckpointingLayer, EncoderLayer):
    """A layer whose activations can be recomputed, and that training skips with probability `layerdrop`."""

    def __init__(self, heads, ffn_dim, config, layerdrop):
        super().__init__(heads, ffn_dim, config)
        self.layerdrop = layerdrop

    def forward(self, states, key_mask, position_bias, attention_map, memory=None):
        if self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop:
            return states, None
        return super().forward(states, key_mask, position_bias, attention_map, memory)


class Encoder(SpeechEncoder):
    """The encoder, with the parts changed that `transformers` requires."""

    def __init__(self, config, layerdrop):
        super().__init__(config)
        if isinstance(self.positional, PositionalConvolution):
            self.positional = RenamedPositionalConvolution(config)
        self.feature_extractor = FreezableMelExtractor(config) if config.mel_bins else FreezableExtractor(config)
        shapes = zip(config.attention_heads, config.ffn_dims, strict=True)
        self.layers = nn.ModuleList(Layer(heads, ffn_dim, config, layerdrop) for heads, ffn_dim in shapes)


class Distilled(PreTrainedModel):
    """The common base of all classes here."""

    _no_split_modules = ["Layer", "RenamedPositionalConvolution"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False

    def _get_feat_extract_output_lengths(self, input_lengths, add_adapter=None):
        return EncoderConfig.from_dict(self.config.encoder_config).frame_count(input_lengths)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PositionalConvolution):
            module.initialize()
            nn.init.zeros_(module.bias)
        elif isinstance(module, PositionGate):
            nn.init.ones_(module.constant)
        elif isinstance(module, RunningGroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, OutputBias):
            nn.init.zeros_(module.bias)
        elif isinstance(module, FeatureExtractor) and module.scale is not None:
            nn.init.ones_(module.scale)
        elif isinstance(module, FeatureProjection) and module.pruned_column is not None:
            nn.init.zeros_(module.pruned_column)
        elif getattr(module, "layer_weights", None) is not None:  # of a head; only HuBERT's own class does it
            nn.init.constant_(module.layer_weights, 1 / module.layer_weights.numel())


class DistilledModel(Distilled):
    """Waveforms, prepared by the folder's feature extractor, to hidden states that do not depend on the batch.

    As a base class it precedes a family's model, whose constructor it replaces and whose SpecAugment it uses.
    """

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        encoder_config = replace(
            EncoderConfig.from_dict(config.encoder_config),
            feature_dropout=float(config.feat_proj_dropout),
            hidden_dropout=float(config.hidden_dropout),
            attention_dropout=float(config.attention_dropout),
            activation_dropout=float(config.activation_dropout),
        )
        # the feature extractor normalises, as usual in `transformers`, unless it has another epsilon
        encoder_config = replace(encoder_config, normalize_waveform=encoder_config.normalizes_with_other_eps)
        self.encoder = Encoder(encoder_config, config.layerdrop)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.post_init()

    @property
    def feature_extractor(self):
        return self.encoder.feature_extractor

    @property
    def feature_projection(self):
        return self.encoder.feature_projection

    def freeze_feature_encoder(self):
        self.feature_extractor._freeze_parameters()

    @can_return_tuple
    def forward(
        self,
        input_values,
        attention_mask=None,
        mask_time_indices=None,
        output_attentions=None,
        output_hidden_states=None,
        **unused,
    ):
        """input_values (batch, sample); attention_mask (batch, sample), 1 at valid samples."""
        lengths = attention_mask.sum(dim=-1).long() if attention_mask is not None else None
        if lengths is None:
            lengths = torch.full(input_values.shape[:1], input_values.shape[-1])
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        maps = self.config.output_attentions if output_attentions is None else output_attentions
        spelled_out = bool(maps) or self.config._attn_implementation == "eager"
        projected, frame_lengths = self.encoder.extract(input_values.to(self.dtype), lengths)
        valid = None
        if attention_mask is not None:
            valid = self._get_feature_vector_attention_mask(projected.shape[1], attention_mask)
        projected = self._mask_hidden_states(projected, mask_time_indices=mask_time_indices, attention_mask=valid)
        output = self.encoder.contextualize(projected, frame_lengths, attention_maps=spelled_out)
        values = {
            "last_hidden_state": output.last_hidden_state,
            "hidden_states": tuple(output.hidden_states) if states else None,
            "attentions": self._attentions(output) if maps else None,
        }
        if isinstance(self, HubertModel):
            return BaseModelOutput(**values)
        return Wav2Vec2BaseModelOutput(**values, extract_features=projected)

    @staticmethod
    def _attentions(output):
        """The maps, (batch, head, frame, frame); with zero heads for layers without attention."""
        batch, frames, _ = output.projected.shape
        without = output.projected.new_zeros(batch, 0, frames, frames)
        return tuple(without if maps is None else maps for maps in output.attention_maps)


class DistilledHead(Distilled):
    """Precedes a `transformers` class with a head as a base, and replaces its encoder by `encoder_class`."""

    def __init__(self, config, **options):
        replaced = copy.copy(config)  # for a minimal encoder, since pruned shapes may be impossible there
        replaced.num_attention_heads = replaced.intermediate_size = 1
        replaced.conv_dim = (1,) * len(config.conv_dim)
        replaced._attn_implementation = "eager"
        super().__init__(replaced, **options)
        self.config = config
        setattr(self, self.base_model_prefix, self.encoder_class(config))
        self.post_init()


class DistilledHubertConfig(HubertConfig):
    model_type = "distilled_speech_encoder"
    encoder_config: dict | None = None  # the encoder's own configuration


class DistilledHubertModel(DistilledModel, HubertModel):
    config_class = DistilledHubertConfig


class DistilledHubertForCTC(DistilledHead, HubertForCTC):
    config_class, encoder_class = DistilledHubertConfig, DistilledHubertModel


class DistilledHubertForSequenceClassification(DistilledHead, HubertForSequenceClassification):
    config_class, encoder_class = DistilledHubertConfig, DistilledHubertModel


class DistilledWavLMConfig(WavLMConfig):
    model_type = "distilled_speech_encoder"
    encoder_config: dict | None = None  # the encoder's own configuration


class DistilledWavLMModel(DistilledModel, WavLMModel):
    config_class = DistilledWavLMConfig


class DistilledWavLMForCTC(DistilledHead, WavLMForCTC):
    config_class, encoder_class = DistilledWavLMConfig, DistilledWavLMModel


class DistilledWavLMForSequenceClassification(DistilledHead, WavLMForSequenceClassification):
    config_class, encoder_class = DistilledWavLMConfig, DistilledWavLMModel


class DistilledWavLMForAudioFrameClassification(DistilledHead, WavLMForAudioFrameClassification):
    config_class, encoder_class = DistilledWavLMConfig, DistilledWavLMModel


class DistilledWavLMForXVector(DistilledHead, WavLMForXVector):
    config_class, encoder_class = DistilledWavLMConfig, DistilledWavLMModel


class DistilledWav2Vec2Config(Wav2Vec2Config):
    model_type = "distilled_speech_encoder"
    encoder_config: dict | None = None  # the encoder's own configuration


class DistilledWav2Vec2Model(DistilledModel, Wav2Vec2Model):
    config_class = DistilledWav2Vec2Config


class DistilledWav2Vec2ForCTC(DistilledHead, Wav2Vec2ForCTC):
    config_class, encoder_class = DistilledWav2Vec2Config, DistilledWav2Vec2Model


class DistilledWav2Vec2ForSequenceClassification(DistilledHead, Wav2Vec2ForSequenceClassification):
    config_class, encoder_class = DistilledWav2Vec2Config, DistilledWav2Vec2Model


class DistilledWav2Vec2ForAudioFrameClassification(DistilledHead, Wav2Vec2ForAudioFrameClassification):
    config_class, encoder_class = DistilledWav2Vec2Config, DistilledWav2Vec2Model


class DistilledWav2Vec2ForXVector(DistilledHead, Wav2Vec2ForXVector):
    config_class, encoder_class = DistilledWav2Vec2Config, DistilledWav2Vec2Model
