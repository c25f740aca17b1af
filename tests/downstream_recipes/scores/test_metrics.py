import pytest

from distiller.common.files import read_csv
from downstream_recipes.scores.metrics import REFERENCES, references

PRINTED = list(zip(references(), read_csv(REFERENCES), strict=True))


def test_the_table_has_the_rows_that_methods_lists():
    assert len(references()) == 17
    assert [row.name for row in references()[:2]] == ["best", "FBANK"]
    assert sum(row.complete and printed["overall"] != "" for row, printed in PRINTED) == 11


@pytest.mark.parametrize(
    ("row", "printed"), [pair for pair in PRINTED if pair[0].complete], ids=lambda value: getattr(value, "name", "")
)
def test_both_scores_reproduce_every_published_row(row, printed):
    if printed["overall"]:
        assert row.overall == pytest.approx(float(printed["overall"]), abs=0.05)
        assert row.generalizability == pytest.approx(float(printed["generalizability"]), abs=2)


def test_wavlm_base_plus_exceeds_a_thousand():
    wavlm = next(row for row in references() if row.name.startswith("WavLM Base+"))
    assert round(wavlm.generalizability) == 1106


def test_partial_rows_have_no_score():
    partial = next(row for row in references() if row.name.startswith("SKWavLM"))
    assert (partial.overall, partial.generalizability) == (None, None)
