"""The families of teachers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What distinguishes the families of teachers, which share one architecture."""

    title: str
    transformers_class: str
    prefix: str  # of the encoder's parameters in larger `transformers` models, such as those for CTC
    relative_position: bool = False  # WavLM's gated biases
    optional_feature_norm: bool = False  # whether `transformers` can leave out the norm in front of the projection
    positional_stack: bool = False  # data2vec's stack of positional convolutions
    conv_norm: str | None = None  # the family's only one, if it has no choice
    whisper: bool = False  # a log-mel front end, a table of positions, keys without bias
    student: str | None = None  # the family of narrow students with their own front end, if it differs


FAMILIES = {  # by `model_type` of `transformers`
    "data2vec-audio": Family(
        "data2vec-audio",
        "Data2VecAudioModel",
        "data2vec_audio.",
        positional_stack=True,
        conv_norm="layer",
        student="hubert",
    ),
    "hubert": Family("HuBERT", "HubertModel", "hubert.", optional_feature_norm=True),
    "unispeech-sat": Family("UniSpeech-SAT", "UniSpeechSatModel", "unispeech_sat."),
    "wav2vec2": Family("wav2vec 2.0", "Wav2Vec2Model", "wav2vec2."),
    "wavlm": Family("WavLM", "WavLMModel", "wavlm.", relative_position=True),
    "whisper": Family("Whisper", "WhisperModel", "model.", whisper=True, student="hubert"),
}
