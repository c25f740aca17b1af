"""Long wavs in chunks against one piece."""

from distiller.benchmarks.long import LongSetting, benchmark_long
from distiller.common.files import read_csv
from upstream.checkpoint import load


def test_chunks_of_a_long_wav_are_near_the_whole(in_this_process, tiny_teacher, tmp_path, capsys) -> None:
    benchmark_long([str(tiny_teacher)], LongSetting(seconds=6, chunk=1, overlap=1), tmp_path)
    (row,) = read_csv(tmp_path / "long.csv")
    assert int(row["frames"]) == load(tiny_teacher).config.frame_count(96_000)
    assert 0 < float(row["last_error"]) <= float(row["largest_error"]) < 0.5
    assert float(row["chunks_mb"]) >= float(row["loaded_mb"]) > 50
    assert "6 s in chunks of 1 s with 1 s of overlap" in capsys.readouterr().out
