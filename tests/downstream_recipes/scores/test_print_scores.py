"""What an evaluation of QbE and SD prints at its end, by experts without s3prl."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from downstream_recipes.adaptation.import_hooks import after_import
from downstream_recipes.scores import print_scores as own_scores
from downstream_recipes.tasks.recipes import read_corpora
from tests.downstream_recipes.pretender import Pretender

EXPERT = """
class DownstreamExpert:
    def __init__(self, **settings):
        self.__dict__.update(settings)

    def log_records(self, mode, records, **given):
        return [f"{mode}-best.ckpt"]
"""


@pytest.fixture
def pretending(miniature) -> Pretender:
    pretender = Pretender()
    pretender.corpora = read_corpora(miniature)
    return pretender


@pytest.fixture
def expert(monkeypatch):
    """Its module adapted with a line of own_scores."""
    module = SimpleNamespace()
    exec(EXPERT, module.__dict__)

    def adapted(line, **settings):
        own_scores._ending_with(line)(module)
        return module.DownstreamExpert(**settings)

    return adapted


def test_a_search_ends_with_its_mtwv(pretending, expert, tmp_path, capsys):
    corpus = pretending.corpora["quesst14"]
    for split in ("dev", "test"):
        folder = tmp_path / split
        folder.mkdir()
        pretending.search(folder, good=True)
        one = expert(own_scores.term_weighted_value, expdir=folder, datarc={"dataset_root": corpus})
        assert one.log_records(split, records={}) == [f"{split}-best.ckpt"]
        assert capsys.readouterr().out.splitlines()[-1] == f"{split} mtwv: 1.000000 (threshold 1.0000)"


def test_an_evaluation_of_diarization_ends_with_the_lowest_der(pretending, expert, tmp_path, capsys):
    (tmp_path / "frame_shift").write_text("320\n")
    pretending.evaluate("sd", tmp_path, {"-t": "test"}, 1e-3)
    corpus = Path(pretending.corpora["libri2mix_diarization"]) / "test"
    settings = {"expdir": str(tmp_path), "loaderrc": {"test_dir": str(corpus)}, "save_predictions": True}
    one = expert(own_scores.diarization_error_rate, **settings)
    for mode in ("train", "dev"):
        assert one.log_records(mode, records={}) == [f"{mode}-best.ckpt"]
        assert capsys.readouterr().out == ""
    one.log_records("test", records={})
    printed = capsys.readouterr().out
    assert printed.startswith("test lowest der: ")
    assert printed.endswith(" (median 1, threshold 0.3)\n")
    one.loaderrc["test_dir"] = str(tmp_path)  # a corpus of one's own, without the ground truth: what s3prl did stays
    assert one.log_records("test", records={}) == ["test-best.ckpt"]
    assert capsys.readouterr().out == f"test: no score, {tmp_path}/rttm: No such file or directory\n"


def test_a_module_can_have_two_adaptations(tmp_path, monkeypatch):
    (tmp_path / "adapted_twice.py").write_text("done = []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in ("first", "second"):
        after_import({"adapted_twice": lambda module, name=name: module.done.append(name)})
    import adapted_twice  # pyright: ignore[reportMissingImports] - of this test

    assert adapted_twice.done == ["first", "second"]
    del sys.modules["adapted_twice"]
