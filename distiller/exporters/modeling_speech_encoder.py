"""The encoder as a model of `transformers`, for exports of structures that its classes do not have.

An exported folder contains it, with copies of config.py, encoder.py and their imports; it is not imported here. Open
the folder with `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.
"""

from dataclasses import replace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

# beside this file in an exported folder; `transformers` copies the files that are named here
from .attention import SelfAttention  # type: ignore[import-not-found]  # noqa: F401
from .config import EncoderConfig  # type: ignore[import-not-found]
from .encoder import PositionalConvolution, SpeechEncoder  # type: ignore[import-not-found]
from .errors import UserError  # type: ignore[import-not-found]  # noqa: F401
from .extractor import FeatureExtractor  # type: ignore[import-not-found]  # noqa: F401
from .waveforms import as_batch  # type: ignore[import-not-found]  # noqa: F401


class SpeechEncoderConfig(PretrainedConfig):
    """`encoder_config`: the encoder's configuration; the rest is for fine-tuning with CTC."""

    model_type = "distilled_speech_encoder"

    def __init__(
        self, encoder_config=None, vocab_size=32, ctc_loss_reduction="sum", ctc_zero_infinity=False, **options
    ):
        super().__init__(**options)
        self.encoder_config = encoder_config or {}
        self.vocab_size = vocab_size
        self.ctc_loss_reduction = ctc_loss_reduction
        self.ctc_zero_infinity = ctc_zero_infinity

    @property
    def hidden_size(self):
        return self.encoder_config.get("embed_dim")

    @property
    def num_hidden_layers(self):
        return len(self.encoder_config.get("ffn_dims", ()))


class RenamedPositionalConvolution(PositionalConvolution):
    """`transformers` renames every parameter called weight_g or weight_v, so these have other names."""

    weight_g = property(lambda self: self.magnitude)
    weight_v = property(lambda self: self.direction)

    def __init__(self, config):
        super().__init__(config)
        self._parameters["magnitude"] = self._parameters.pop("weight_g")
        self._parameters["direction"] = self._parameters.pop("weight_v")
        if not self.direction.is_meta:
            self.initialize()


class SpeechEncoderPreTrainedModel(PreTrainedModel):
    config_class = SpeechEncoderConfig
    base_model_prefix = "speech_encoder"
    main_input_name = "input_values"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


class SpeechEncoderModel(SpeechEncoderPreTrainedModel):
    """Waveforms, prepared by the folder's feature extractor, to hidden states that do not depend on the batch."""

    def __init__(self, config):
        super().__init__(config)
        encoder_config = EncoderConfig.from_dict(config.encoder_config)
        # the feature extractor normalises, as usual in `transformers`, unless it has another epsilon
        encoder_config = replace(encoder_config, normalize_waveform=encoder_config.normalizes_with_other_eps)
        self.encoder = SpeechEncoder(encoder_config)
        self.encoder.positional = RenamedPositionalConvolution(encoder_config)
        self.post_init()

    def forward(
        self,
        input_values,
        attention_mask=None,
        output_hidden_states=None,
        output_attentions=None,
        return_dict=None,
    ):
        """input_values (batch, sample); attention_mask (batch, sample), 1 at valid samples."""
        lengths = None if attention_mask is None else attention_mask.sum(dim=-1)
        maps = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = self.encoder(input_values, lengths, attention_maps=bool(maps))
        result = BaseModelOutput(
            last_hidden_state=output.last_hidden_state,
            hidden_states=tuple(output.hidden_states) if states else None,
            attentions=tuple(output.attention_maps) if maps else None,
        )
        return result if return_dict in (None, True) else result.to_tuple()


class SpeechEncoderForCTC(SpeechEncoderPreTrainedModel):
    """The encoder under a linear layer, for fine-tuning on transcripts."""

    def __init__(self, config):
        super().__init__(config)
        self.speech_encoder = SpeechEncoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_values, attention_mask=None, labels=None):
        """labels (batch, token), padded with -100."""
        logits = self.lm_head(self.speech_encoder(input_values, attention_mask).last_hidden_state)
        loss = None
        if labels is not None:
            samples = attention_mask.sum(dim=-1) if attention_mask is not None else None
            if samples is None:
                samples = torch.full(input_values.shape[:1], input_values.shape[-1], device=input_values.device)
            loss = nn.functional.ctc_loss(
                logits.float().log_softmax(dim=-1).transpose(0, 1),
                labels.clamp(min=0),
                self.speech_encoder.encoder.config.frame_count(samples),
                (labels >= 0).sum(dim=-1),
                blank=getattr(self.config, "pad_token_id", None) or 0,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        return CausalLMOutput(loss=loss, logits=logits)
