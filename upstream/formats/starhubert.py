"""The STaR authors' checkpoints: a Lightning .ckpt with `student_model.*` weights, and a .yaml whose `distiller` block
is the model's configuration with fairseq's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..encoder import SpeechEncoder
from ..errors import UserError
from .fairseq import KEYS, SETTINGS, TRAINING_KEYS, has_relative_positions, parse_settings
from .files import read_yaml
from .keys import KeyTable, build
from .settings import plain_settings

NAME = "STaRHuBERT or STaRWavLM .ckpt with its .yaml"
PREFIX = "student_model."
REQUIRED = (
    "conv_feature_layers", "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads",
)  # fmt: skip

# ignored: the distillation's own projections and the teacher
TABLE = KeyTable(KEYS, (*TRAINING_KEYS, "output_layer.**", "teacher_model.**"), (PREFIX,))


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is of this format."""
    state = content.get("state_dict")
    return isinstance(state, Mapping) and any(str(key).startswith(f"{PREFIX}encoder.pos_conv.") for key in state)


def read(content: Mapping[str, Any], path: Path, model_config: Path | None) -> SpeechEncoder:
    """The student in the content of a file.

    Its configuration is `model_config`, else the .yaml or .yml beside `path` with the same stem, else the copy that
    Lightning stored in the checkpoint.

    Raises:
        UserError: no configuration, an unsupported setting, or anything wrong with the weights.
    """
    beside = (path.with_suffix(suffix) for suffix in (".yaml", ".yml"))
    source = model_config or next((file for file in beside if file.is_file()), None)
    stored = content.get("hyper_parameters")
    if source is not None:
        values: Any = read_yaml(source)
    elif isinstance(stored, Mapping):
        source, values = path, stored.get("cfg", stored)
    else:
        raise UserError(f"{path} needs its configuration: {path.with_suffix('.yaml').name} beside it, or model_config")
    settings = values.get("distiller") if isinstance(values, Mapping) else None
    if not isinstance(settings, Mapping):
        raise UserError(f"{source} has no 'distiller' block with the model's configuration")
    missing = [key for key in REQUIRED if key not in settings]
    if missing:
        raise UserError(f"{source}: the distiller block lacks {', '.join(missing)}")
    state = content["state_dict"]
    settings = plain_settings(settings, (*SETTINGS, "normalize"), str(source))
    family = "wavlm" if has_relative_positions(state) else "hubert"
    config = parse_settings(settings, family, settings.get("normalize") is True, str(source))
    return build(config, state, str(path), TABLE)
