import pytest

from downstream_recipes.scores.metrics import MAIN_COLUMNS, generalizability_score, overall_score, references
from upstream.errors import UserError

WHOLE = [reference for reference in references() if len(reference.scores) == len(MAIN_COLUMNS)]


def test_the_table_has_the_rows_that_methods_lists():
    assert len(references()) == 17
    assert [reference.upstream for reference in references()[:2]] == ["best", "FBANK"]
    assert sum(reference.overall is not None for reference in WHOLE) == 11


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: f"{row.upstream} {row.corpus}")
def test_both_scores_reproduce_every_published_row(row):
    if row.overall is not None:
        assert overall_score(row.scores) == pytest.approx(row.overall, abs=0.05)
        assert generalizability_score(row.scores) == pytest.approx(row.generalizability, abs=2)


def test_wavlm_base_plus_exceeds_a_thousand():
    wavlm = next(row for row in references() if row.upstream == "WavLM Base+")
    assert round(generalizability_score(wavlm.scores)) == 1106


def test_partial_rows_have_no_score():
    partial = next(row for row in references() if row.upstream == "SKWavLM")
    with pytest.raises(UserError, match="missing are ks_acc, qbe_mtwv"):
        overall_score(partial.scores)
    with pytest.raises(UserError, match="missing are"):
        generalizability_score(partial.scores)
