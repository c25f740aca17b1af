import pytest

from downstream_recipes.scores.metrics import generalizability_score, overall_score, references
from upstream.errors import UserError

COMPLETE = [row for row in references() if row.complete]


def test_the_table_has_the_rows_that_methods_lists():
    assert len(references()) == 17
    assert [row.name for row in references()[:2]] == ["best", "FBANK"]
    assert sum(row.overall is not None for row in COMPLETE) == 11


@pytest.mark.parametrize("row", COMPLETE, ids=lambda row: row.name)
def test_both_scores_reproduce_every_published_row(row):
    if row.overall is not None:
        assert overall_score(row.scores) == pytest.approx(row.overall, abs=0.05)
        assert generalizability_score(row.scores) == pytest.approx(row.generalizability, abs=2)


def test_wavlm_base_plus_exceeds_a_thousand():
    wavlm = next(row for row in references() if row.name.startswith("WavLM Base+"))
    assert round(generalizability_score(wavlm.scores)) == 1106


def test_partial_rows_have_no_score():
    partial = next(row for row in references() if row.name.startswith("SKWavLM"))
    with pytest.raises(UserError, match="missing are ks_acc, qbe_mtwv"):
        overall_score(partial.scores)
    with pytest.raises(UserError, match="missing are"):
        generalizability_score(partial.scores)
