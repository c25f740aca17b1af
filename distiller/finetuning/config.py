"""Fine-tuning recipes: everything that determines a run, typed and strict, in the form of distillation recipes.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distiller.common.strict import ABOVE_0, AT_LEAST_1, STRICT, Text, check, typed
from distiller.corpora.config import AUTO, CorpusConfig
from distiller.recipes.yaml_files import overlay, parse_overrides, read
from distiller.training.config import OptimizerConfig, TrainerConfig
from upstream.errors import require

RECIPES = Path(__file__).parent / "recipes"
LOG_MEL = "log-mel"  # in place of a checkpoint: log-mel energies, as a baseline

Share = Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")]


@dataclass(config=STRICT)
class TextConfig:
    """Where the transcripts are, and how they are normalised."""

    # files of PATH<TAB>TEXT, Lhotse manifests, or a folder with LibriSpeech's *.trans.txt; null: with the corpus
    path: Text | None = None
    case: Literal["upper", "lower", "keep"] = "upper"
    punctuation: bool = False  # whether anything but letters, digits and apostrophes is kept


@dataclass(config=STRICT)
class VocabularyConfig:
    """The tokens that the head distinguishes."""

    kind: Literal["characters", "bpe"] = "characters"
    size: Annotated[int, AT_LEAST_1] = 500  # pieces of bpe
    # a custom vocabulary: a text file with a character per line, or a sentencepiece model; null: it is made from the
    # transcripts
    path: Text | None = None


@dataclass(config=STRICT)
class EncoderTuning:
    """How the encoder is trained. The head's learning rate is optimizer.lr."""

    frozen: Share = 0.1  # share of the steps, at the start, in which only the head is trained; 1: all of them
    train_extractor: bool = False  # the convolutions
    lr_scale: Annotated[float, ABOVE_0] = 1.0  # of the last layer's learning rate, relative to the head's
    layer_decay: Annotated[float, Field(gt=0, le=1, description="a factor above 0 and up to 1")] = 0.9  # of each below
    mask_starts: Share = 0.0  # share of frames at which a masked span begins
    mask_span: Annotated[int, AT_LEAST_1] = 10  # frames


@dataclass(config=STRICT)
class HeadConfig:
    """The linear layer on the encoder's last hidden state."""

    dropout: Annotated[float, Field(ge=0, lt=1, description="a probability below 1")] = 0.1


@dataclass(config=STRICT)
class DecodingConfig:
    """How held-out audio is transcribed at the end, in addition to greedy decoding."""

    beam: Annotated[int, Field(ge=0, description="a number of hypotheses, or 0 for no beam search")] = 0


@dataclass(config=STRICT, kw_only=True)
class FineTuning:
    """One run."""

    seed: Annotated[int, Field(ge=0, lt=2**32, description="an integer from 0 to 4294967295")] = 1
    model: Annotated[Text, check(bool)]  # what `upstream.checkpoint.load` opens, bundled, or log-mel
    corpus: CorpusConfig
    text: TextConfig = field(default_factory=TextConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    encoder: EncoderTuning = field(default_factory=EncoderTuning)
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    @model_validator(mode="after")
    def _possible(self) -> "FineTuning":
        corpus, trainer = self.corpus, self.trainer
        require(corpus.batch_seconds != AUTO, "corpus.batch_seconds", AUTO, "a number of seconds in fine-tuning")
        whole = "null in fine-tuning: a part of a recording has no transcript"
        require(corpus.window_seconds is None, "corpus.window_seconds", corpus.window_seconds, whole)
        # the layers are skipped while only the head is trained, which is impossible in a sharded network
        require(trainer.strategy != "fsdp", "trainer.strategy", trainer.strategy, "auto or ddp in fine-tuning")
        return self


def resolve(
    recipe: str | Path, model: str | None = None, corpus: str | None = None, overrides: Iterable[str] = ()
) -> FineTuning:
    """The recipe that a command line asks for: a shipped one by its name or a YAML file, and `key=value` overrides.

    Raises:
        UserError: the recipe does not exist; an unknown key; a value of the wrong type or out of range, or not set.
    """
    options: dict[str, Any] = {} if model is None else {"model": model}
    options |= {} if corpus is None else {"corpus": {"path": corpus}}
    return build(overlay(overlay(read(recipe, recipes=RECIPES), options), parse_overrides(overrides)))


def build(values: Mapping[str, Any]) -> FineTuning:
    """The typed recipe of a nested dict. Raises: UserError: as `resolve`."""
    sections = {one.name: one.type for one in fields(FineTuning) if is_dataclass(one.type)}
    return typed(FineTuning, dict.fromkeys(sections) | dict(values))
