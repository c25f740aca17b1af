"""From scores to text, from files to text, and the error rates of the text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.common.files import expanded
from distiller.corpora.scanning import scan
from distiller.finetuning.recognizer import Recognizer
from distiller.finetuning.vocabulary import BLANK, SPACE, Vocabulary
from upstream.errors import UserError


def greedy(logits: Tensor, vocabulary: Vocabulary) -> str:
    """The text of the best token of each frame: (frame, token) -> repetitions merged, blanks left out."""
    return vocabulary.decode(token for token, _ in groupby(logits.argmax(dim=-1).tolist()) if token)


class Beam:
    """Torchaudio's beam search (flashlight-text), without lexicon or language model: the most probable text.

    Args:
        size: hypotheses kept after each frame.

    Raises:
        UserError: flashlight-text is not installed.
    """

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        try:
            from torchaudio.models.decoder import ctc_decoder
        except (ImportError, RuntimeError):
            raise UserError(
                "beam search needs flashlight-text (Python 3.11 or 3.12); run uv sync --extra beam"
            ) from None
        self.vocabulary = vocabulary
        # pieces of words contain their spaces; the decoder adds its silence around each hypothesis
        silence = SPACE if SPACE in vocabulary.index else BLANK
        options: dict[str, Any] = {"lexicon": None, "lm": None, "log_add": True, "beam_threshold": float("inf")}
        self.decoder = ctc_decoder(
            tokens=vocabulary.tokens, beam_size=size, blank_token=BLANK, sil_token=silence, unk_word=BLANK, **options
        )

    def __call__(self, logits: Tensor) -> str:
        """(frame, token) -> text."""
        scores = logits.float().log_softmax(dim=-1).cpu().contiguous()
        best = self.decoder(scores[None])[0]
        return self.vocabulary.decode(token for token in best[0].tokens.tolist() if token) if best else ""


@dataclass(frozen=True)
class ErrorRates:
    """Over all words, and all characters, of the references; in percent."""

    wer: float
    cer: float
    substitutions: int  # words
    deletions: int
    insertions: int
    words: int  # of the references


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """The error rates of the hypotheses; no reference is empty.

    Raises:
        UserError: jiwer is not installed.
    """
    jiwer = _jiwer()
    words = jiwer.process_words(list(references), list(hypotheses))
    total = words.hits + words.substitutions + words.deletions
    rates = 100 * words.wer, 100 * jiwer.cer(list(references), list(hypotheses))
    return ErrorRates(*rates, words.substitutions, words.deletions, words.insertions, total)


def require_packages(beam: int, vocabulary: Vocabulary) -> None:
    """Raises: UserError: a package needed at the end of a run is missing."""
    _jiwer()
    if beam:
        Beam(vocabulary, beam)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError:
        raise UserError("word error rates need jiwer; run uv sync --group recognition") from None
    return jiwer


def transcriptions(
    recognizer: Recognizer, names: Sequence[str], beam: int = 0
) -> Iterator[tuple[str, str | UserError]]:
    """The path of every file, and its text, or why there is none.

    Args:
        names: audio files, or anything else that `corpora.scanning.scan` takes, such as folders and lists.
        beam: hypotheses of a beam search; 0: greedy decoding.
    """
    decoder = Decoder(recognizer.encoder.config.min_samples)
    decode = text_of(recognizer, beam)
    for name in names:
        path = expanded(name).absolute()
        try:
            cuts, unusable = scan(path, path if path.is_dir() else path.parent)
        except UserError as error:
            yield name, error
            continue
        for row in unusable:
            yield row.path, UserError(f"{row.path}: {row.reason}")
        for cut in cuts:
            shown = name if source_path(cut) == str(path) else source_path(cut)
            try:
                yield shown, decode(decoder.decode(cut))
            except (Undecodable, UserError) as error:  # the latter for encoders that take at most 30 s
                yield shown, UserError(f"{shown}: {error}")


def text_of(recognizer: Recognizer, beam: int) -> Callable[[Tensor], str]:
    """Waveform (sample,) -> text. Raises: UserError: as `Beam`."""
    search = Beam(recognizer.vocabulary, beam) if beam else None

    def decode(waveform: Tensor) -> str:
        logits = recognizer.logits(waveform.to(recognizer.head.weight.device)).cpu()
        return greedy(logits, recognizer.vocabulary) if search is None else search(logits)

    return decode
