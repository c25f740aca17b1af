"""What an evaluation of QbE and SD prints at its end, with experts that do without s3prl."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from downstream_recipes.adaptation.import_hooks import after_import
from downstream_recipes.scores import print_scores
from downstream_recipes.tasks.recipes import read_corpora
from tests.downstream_recipes.pretender import Pretender

EXPERT = """
class DownstreamExpert:
    def __init__(self, **settings):
        self.__dict__.update(settings)

    def log_records(self, mode, records, **others):
        return [f"{mode}-best.ckpt"]
"""


@pytest.fixture
def pretending(miniature) -> Pretender:
    pretender = Pretender()
    pretender.corpora = read_corpora(miniature)
    return pretender


@pytest.fixture
def expert(monkeypatch):
    """An expert whose module is adapted to end with a line of print_scores."""
    module = SimpleNamespace()
    exec(EXPERT, module.__dict__)

    def adapted(line, **settings):
        print_scores._end_with(line, module)
        return module.DownstreamExpert(**settings)

    return adapted


def test_a_search_ends_with_its_mtwv(pretending, expert, tmp_path, capsys):
    corpus = pretending.corpora["quesst14"]
    for split in ("dev", "test"):
        folder = tmp_path / split
        folder.mkdir()
        pretending.search(folder, good=True)
        search = expert(print_scores.term_weighted_value, expdir=folder, datarc={"dataset_root": corpus})
        assert search.log_records(split, records={}) == [f"{split}-best.ckpt"]
        assert capsys.readouterr().out.splitlines()[-1] == f"{split} mtwv: 1.000000 (threshold 1.0000)"


def test_an_evaluation_of_diarization_ends_with_the_lowest_der(pretending, expert, tmp_path, capsys):
    (tmp_path / "frame_shift").write_text("320\n")
    pretending.evaluate("sd", tmp_path, {"evaluate_split": "test"}, 1e-3)
    corpus = Path(pretending.corpora["libri2mix_diarization"]) / "test"
    settings = {"expdir": str(tmp_path), "loaderrc": {"test_dir": str(corpus)}, "save_predictions": True}
    diarization = expert(print_scores.diarization_error_rate, **settings)
    for mode in ("train", "dev"):
        assert diarization.log_records(mode, records={}) == [f"{mode}-best.ckpt"]
        assert capsys.readouterr().out == ""
    diarization.log_records("test", records={})
    printed = capsys.readouterr().out
    assert printed.startswith("test lowest der: ")
    assert printed.endswith(" (median 1, threshold 0.3)\n")
    diarization.loaderrc["test_dir"] = str(tmp_path)  # a corpus without ground truth: s3prl's work is kept
    assert diarization.log_records("test", records={}) == ["test-best.ckpt"]
    assert capsys.readouterr().out == f"test: no score, {tmp_path}/rttm cannot be read: No such file or directory\n"


def test_a_module_can_have_two_adaptations(tmp_path, monkeypatch):
    (tmp_path / "adapted_twice.py").write_text("done = []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in ("first", "second"):
        after_import({"adapted_twice": lambda module, name=name: module.done.append(name)})
    import adapted_twice  # pyright: ignore[reportMissingImports] - of this test

    assert adapted_twice.done == ["first", "second"]
    del sys.modules["adapted_twice"]
