"""The benchmark of reading: each format is read, and its row says from which audio and how many bytes."""

from pathlib import Path

import pytest

from distiller.benchmarks.reading import benchmark
from distiller.common.files import read_csv
from tests.distiller.corpora.prepared_corpora import noise


@pytest.mark.parametrize("workers", [0, 1])
def test_each_format_has_a_row(workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(6):
        noise(tmp_path / f"corpus/{index}.wav", 8_000 + index)
    table = tmp_path / "data.csv"
    benchmark(tmp_path / "corpus", [], minutes=1.0, rounds=2, workers=workers, table=table)
    rows = read_csv(table)
    formats = [("flac", 16_000), ("flac", 44_100), ("wav", 16_000), ("wav", 44_100)]
    formats += [("prepared flac", 16_000), ("prepared wav", 16_000)]
    assert [(row["format"], int(row["rate"])) for row in rows] == formats
    for row in rows:
        assert float(row["lowest"]) <= float(row["realtime"]) <= float(row["highest"])
        assert (row["workers"], row["seconds"], row["mean_seconds"]) == (str(workers), "3", "0.5")
    sizes = {(row["format"], row["rate"]): int(row["bytes_per_second"]) for row in rows}
    assert sizes["wav", "16000"] == pytest.approx(32_000, rel=0.01)  # 16 bits and a header
    assert sizes["wav", "44100"] == pytest.approx(88_200, rel=0.01)
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 6
    assert err == ""
