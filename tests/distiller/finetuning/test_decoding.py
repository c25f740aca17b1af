"""Greedy decoding, beam search and error rates, against numbers computed by hand."""

import itertools
import sys

import pytest
import torch

from distiller.finetuning.decoding import Beam, error_rates, greedy
from distiller.finetuning.vocabulary import Vocabulary
from tests.distiller.finetuning.conftest import needs_beam
from upstream.errors import UserError

VOCABULARY = Vocabulary(["<pad>", "|", "A", "B"])


def scores(*frames: list[float]) -> torch.Tensor:
    return torch.tensor(frames).clamp(min=1e-9).log()


def test_greedily_repetitions_are_merged_and_blanks_separate() -> None:
    best = [0, 2, 2, 0, 2, 1, 1, 3, 0, 0, 3]
    assert greedy(torch.eye(4)[best], VOCABULARY) == "AA BB"
    assert greedy(torch.eye(4)[[0, 0]], VOCABULARY) == ""


@needs_beam
def test_a_beam_finds_the_text_that_many_alignments_share() -> None:
    """Two frames of blank 0.6 and A 0.4: "" has 0.36, and A, as A_, _A or AA, 0.64."""
    logits = scores([0.6, 0.0, 0.4, 0.0], [0.6, 0.0, 0.4, 0.0])
    assert greedy(logits, VOCABULARY) == ""
    assert Beam(VOCABULARY, 10)(logits) == "A"


@needs_beam
def test_a_wide_beam_is_the_search_through_all_alignments() -> None:
    for seed in range(5):
        logits = 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        logits[:, 1] = -20.0  # no spaces: the decoder leaves those around a text to its caller
        likelihoods: dict[str, float] = {}
        for path in itertools.product(range(4), repeat=5):
            likelihood = float(logits.log_softmax(1)[range(5), list(path)].sum().exp())
            text = greedy(torch.eye(4)[list(path)], VOCABULARY)
            likelihoods[text] = likelihoods.get(text, 0.0) + likelihood
        best = max(likelihoods, key=lambda text: likelihoods[text])
        assert Beam(VOCABULARY, 1000)(logits) == best


def test_without_its_package_beam_search_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("flashlight", "torchaudio.models.decoder"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flashlight", None)
    monkeypatch.setitem(sys.modules, "flashlight.lib", None)
    with pytest.raises(UserError, match=r"beam search needs flashlight-text .* run uv sync --extra beam"):
        Beam(VOCABULARY, 5)


def test_error_rates_are_over_all_words_and_characters() -> None:
    """A B C -> A X C D: one substitution, one insertion; EE FF -> EE: one deletion. That is 3 of 5 words.

    Characters, spaces included: "A B C" has 5, of which one is replaced and " D" inserted; "EE FF" 5, of which " FF" is
    missing: 6 of 10.
    """
    rates = error_rates(["A B C", "EE FF"], ["A X C D", "EE"])
    assert (rates.substitutions, rates.deletions, rates.insertions, rates.words) == (1, 1, 1, 5)
    assert rates.wer == pytest.approx(60.0)
    assert rates.cer == pytest.approx(60.0)
