"""Fine-tuning, transcribing and exporting through the command line, with a tiny encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from distiller import export, finetune, transcribe
from distiller.audio.batch import Batch
from distiller.common.files import read_csv
from distiller.finetuning.config import resolve
from distiller.finetuning.decoding import error_rates, greedy
from distiller.finetuning.module import CTC
from distiller.finetuning.recognizer import Recognizer, open_recognizer
from distiller.finetuning.vocabulary import BLANK, Vocabulary
from distiller.graphs.onnx import graph_of
from distiller.objectives.base import Term
from tests.distiller.conftest import TEACHER
from tests.distiller.finetuning.conftest import BEAM, SmallFineTuning, needs_beam
from upstream.checkpoint import load
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.onnx_encoder import metadata, session


def test_a_run_leaves_a_recogniser_its_error_rates_and_what_it_heard(small: SmallFineTuning) -> None:
    out = small.completes(*["decoding.beam=5"] * BEAM)
    report = json.loads(Path("run/report.json").read_text())
    rows = read_csv(Path("run/transcripts.csv"))
    assert [row["said"] for row in sorted(rows, key=lambda row: row["id"])] == ["AB BA", "BA ABBA"]
    recognizer, heard = open_recognizer("run/model"), {}
    for row in rows:
        waveform = torch.from_numpy(soundfile.read(f"corpus/{row['id']}", dtype="float32")[0])
        assert greedy(recognizer.logits(waveform), recognizer.vocabulary) == row["greedy"]
        heard[row["said"]] = row["greedy"]
    rates = error_rates(list(heard), list(heard.values()))
    assert report["held_out"]["greedy"]["wer"] == pytest.approx(rates.wer)
    assert report["held_out"]["greedy"]["cer"] == pytest.approx(rates.cer)
    assert {"utterances", "hours", "greedy", *["beam"] * BEAM} == report["held_out"].keys()
    assert f"greedy: WER {rates.wer:.2f} %, CER {rates.cer:.2f} %" in out
    assert f"| greedy | {rates.wer:.2f} | {rates.cer:.2f} |" in Path("run/model/README.md").read_text()
    assert len(read_csv(Path("run/metrics.csv"))) == 4
    encoder, teacher = load("run/model"), load("teacher")  # two of the four steps were the head's alone
    assert encoder.config == teacher.config
    changed = {
        name for name, value in encoder.state_dict().items() if not torch.equal(value, teacher.state_dict()[name])
    }
    assert changed
    assert not any(name.startswith("feature_extractor") for name in changed)


def test_a_complete_run_is_shown_again_wherever_its_inputs_are(small: SmallFineTuning) -> None:
    small.completes()
    first = small.completes()
    assert first.startswith("2 held-out utterances")
    Path("corpus").rename("moved")
    Path("teacher").rename("elsewhere")
    assert small.completes("--corpus=moved", "--model=elsewhere") == first
    path = next(Path("moved/train").rglob("*.trans.txt"))
    path.write_text(path.read_text().replace("ABBA", "BABA"))
    assert "run was made with another transcripts: digest" in small.refused("--corpus=moved", "--model=elsewhere")
    assert "run was made with another recipe: head.dropout (0.1 against 0.2)" in small.refused(
        "--corpus=moved", "--model=elsewhere", "head.dropout=0.2"
    )


@pytest.mark.parametrize("killed_at", [2, 4])
def test_an_interrupted_run_ends_as_one_that_was_not(
    killed_at: int, small: SmallFineTuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step belongs to the head alone, the fourth to all; dropout and masks are random."""
    settings = ("encoder.mask_starts=0.1", "encoder.mask_span=2", "trainer.ema=0.5")
    small.completes(*settings, "--output=whole")
    calls, losses = [0], CTC.losses

    def killed(self: CTC, batch: Batch) -> list[Term]:
        calls[0] += self.training
        if calls[0] == killed_at and self.training:
            raise UserError("killed")
        return losses(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(CTC, "losses", killed)
        assert "killed" in small.refused(*settings)
    small.completes(*settings)
    for name in ("model/model.safetensors", "model/head.safetensors", "best/head.safetensors"):
        one, other = (load_file(Path(folder, name)) for folder in ("whole", "run"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    for name in ("held_out.csv", "transcripts.csv"):
        assert Path("whole", name).read_text() == Path("run", name).read_text()


def test_pieces_of_words_and_log_mel_energies(small: SmallFineTuning) -> None:
    small.completes("vocabulary.kind=bpe", "vocabulary.size=7", "--output=bpe")
    recognizer = open_recognizer("bpe/model")
    assert (recognizer.vocabulary.kind, len(recognizer.vocabulary)) == ("bpe", 8)
    small.completes("--model=log-mel", "--output=mel")
    assert [name for name, _ in open_recognizer("mel/model").named_parameters()] == ["head.weight", "head.bias"]
    argv = ["mel/model", "--to=onnx", "--output=x.onnx"]
    assert export.main(argv) == 2
    assert (
        "mel/model is a recogniser on log-mel energies, so it has no encoder to export" in small.capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--recipe=ctx"],
            "recipe ctx does not exist; it could be a FILE.yaml or one of ctc, ctc-100h; did you mean ctc?",
        ),
        (["encoder.frozzen=1"], "encoder.frozzen is not a recipe key; it could be one of encoder.frozen"),
        (["encoder.layer_decay=0"], "encoder.layer_decay is 0.0, but it must be a factor above 0 and up to 1"),
        (
            ["corpus.batch_seconds=auto", "corpus.step_seconds=9"],
            "corpus.batch_seconds is 'auto', but it must be a number",
        ),
        (["corpus.window_seconds=20"], "corpus.window_seconds is 20.0, but it must be null in fine-tuning"),
        (["trainer.strategy=fsdp"], "trainer.strategy is 'fsdp', but it must be auto or ddp in fine-tuning"),
        (["--model=nowhere"], "--model nowhere does not exist"),
        (["text.path=nowhere"], "text.path nowhere does not exist"),
        (["vocabulary.path=nowhere"], "vocabulary.path nowhere does not exist"),
        (["vocabulary.path=letters"], "lacks 'B' of 8 transcripts (text.case is upper), the first of"),
        (["text.path=letters"], "8 of 8 utterances have no transcript in text.path"),
        (["vocabulary.kind=bpe", "vocabulary.size=2"], "vocabulary.size is 2, which sentencepiece rejects"),
    ],
)
def test_mistakes_are_one_line_before_any_folder(argv: list[str], said: str, small: SmallFineTuning) -> None:
    Path("letters").write_text("A\n")
    assert said in small.refused(*argv)
    assert not Path("run").exists()


def test_too_many_texts_that_do_not_fit_stop_a_run(small: SmallFineTuning) -> None:
    path = next(Path("corpus/train").rglob("*.trans.txt"))
    path.write_text("".join(f"train-{index} {'AB' * 50}\n" for index in range(2)) + path.read_text().split("\n", 2)[2])
    error = small.refused()
    assert "2 of 8 utterances (25.0%) could not be used" in error
    assert "its transcript needs 100 frames, but it has 24" in error
    out = small.completes("corpus.max_skipped=0.02")
    assert out.startswith("set aside: 2 utterances, such as ")
    assert len(read_csv(Path("run/skipped.csv"))) == 2


def recogniser(folder: Path, encoder: SpeechEncoder | None = None) -> Recognizer:
    """A saved one with random weights, which hears something in noise."""
    torch.manual_seed(0)
    made = Recognizer(encoder or SpeechEncoder(TEACHER), Vocabulary([BLANK, "|", "A", "B"])).eval()
    with torch.no_grad():
        made.head.weight.mul_(10)
    made.save(folder)
    return made


def test_files_are_transcribed_and_bad_ones_are_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = recogniser(Path("model"))
    Path("folder").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal((3, 8000))
    for name, samples in zip(("a.wav", "folder/b.flac", "c.wav"), noise, strict=True):
        soundfile.write(name, samples, 16_000, subtype="PCM_16")
    Path("text.wav").write_text("no audio")
    argv = ["model", "a.wav", "nowhere.wav", "folder", "text.wav", "c.wav", "--device=cpu"]
    assert transcribe.main(argv) == 1
    out, err = capfd.readouterr()
    texts = dict(line.split("\t") for line in out.splitlines())
    assert list(texts) == ["a.wav", str(tmp_path / "folder/b.flac"), "c.wav"]
    for name, text in texts.items():
        samples = torch.from_numpy(soundfile.read(name, dtype="float32")[0])
        assert text == greedy(made(samples[None])[0][0], made.vocabulary) != ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["error"] * 2
    assert "nowhere.wav" in err
    assert "text.wav" in err


@needs_beam
def test_a_file_is_transcribed_by_beam_search(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recogniser(tmp_path / "model")
    wav = tmp_path / "a.wav"
    soundfile.write(wav, 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000, subtype="PCM_16")
    assert transcribe.main([str(tmp_path / "model"), str(wav), "--beam=20", "--device=cpu"]) == 0
    assert capfd.readouterr().out.startswith(f"{wav}\t")


def test_a_long_file_is_heard_in_chunks(tmp_path: Path) -> None:
    """The seam of two chunks changes the context of a few frames only."""
    made = recogniser(tmp_path / "model")
    waveform = 0.1 * torch.randn(33 * 16_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, chunked = made(waveform[None])[0][0], made.logits(waveform)
    assert whole.shape == chunked.shape
    assert float((whole.argmax(1) == chunked.argmax(1)).float().mean()) > 0.95


@pytest.mark.parametrize("damage", ["head.safetensors", "recognizer.json"])
def test_a_damaged_recogniser_is_one_line(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recogniser(tmp_path / "model")
    (tmp_path / "model" / damage).write_text('{"vocabulary": {"tokens": ["A"]}}')
    assert transcribe.main([str(tmp_path / "model"), "a.wav", "--device=cpu"]) == 2
    error = capfd.readouterr().err
    assert "is damaged" in error
    assert error.count("\n") == 1


def test_an_export_for_transformers_hears_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a pruned encoder, by the folder's own code; through its processor, from the wav to the text."""
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    pruned = SpeechEncoder(type(TEACHER)(**{**vars(TEACHER), "attention_heads": ((1,), None), "ffn_dims": (7, 0)}))
    waveform = 0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(1))
    for name, encoder in (("plain", None), ("pruned", pruned)):
        made = recogniser(Path(name), encoder)
        assert export.main([name, "--to=transformers", f"--output={name}-hf"]) == 0
        trusted = {"trust_remote_code": True} if encoder else {}
        model = AutoModelForCTC.from_pretrained(f"{name}-hf", **trusted).eval()
        inputs = AutoFeatureExtractor.from_pretrained(f"{name}-hf")(
            waveform.numpy(), sampling_rate=16_000, return_tensors="pt"
        )
        with torch.no_grad():
            logits, expected = model(**inputs).logits[0], made(waveform[None])[0][0]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        text = AutoTokenizer.from_pretrained(f"{name}-hf", **trusted).decode(logits.argmax(-1))
        assert text.split() == greedy(expected, made.vocabulary).split() != []
        assert torch.equal(load(f"{name}-hf").state_dict()["layer_norm.weight"], made.encoder.layer_norm.weight)
        assert float(model(**inputs, labels=torch.tensor([[2, 1, 3]])).loss.detach()) > 0


def test_a_graph_of_a_recogniser_gives_logits_unless_states_are_asked_for(tmp_path: Path) -> None:
    made = recogniser(tmp_path / "model")
    waveforms, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([9000, 5000])
    with torch.no_grad():
        logits, frames = graph_of(made.encoder, "logits", None, made)(waveforms, lengths)
        assert torch.equal(logits, made(waveforms, lengths)[0])
        states = graph_of(made.encoder, "last", None, made)(waveforms, lengths)[0]
    assert (logits.shape[-1], states.shape[-1]) == (len(made.vocabulary), TEACHER.embed_dim)
    assert frames.tolist() == made.encoder.config.frame_count(lengths).tolist()


@pytest.mark.slow
def test_an_onnx_file_gives_logits_and_says_what_they_mean(tmp_path: Path) -> None:
    made = recogniser(tmp_path / "model")
    argv = [str(tmp_path / "model"), "--to=onnx", f"--output={tmp_path / 'x.onnx'}"]
    assert export.main(argv) == 0
    waveforms = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    logits, frames = session(tmp_path / "x.onnx")(waveforms, torch.tensor([9000, 5000]))
    with torch.no_grad():
        expected, lengths = made(waveforms, torch.tensor([9000, 5000]))
    assert torch.equal(frames, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[row, :length], expected[row, :length], rtol=0, atol=1e-4)
    values = json.loads(metadata(tmp_path / "x.onnx")["vocabulary"])
    assert Vocabulary.from_dict(values).tokens == made.vocabulary.tokens


def test_a_student_has_no_logits(tiny_teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(tiny_teacher), "--to=onnx", f"--output={tmp_path / 'x.onnx'}", "--states=logits"]) == 2
    assert "--states is 'logits', but it must be all, weighted or last, since only" in capfd.readouterr().err


def test_a_dry_run_prints_every_key_and_writes_nothing(small: SmallFineTuning) -> None:
    Path("again.yaml").write_text(small.completes("--dry-run"))
    assert not Path("run").exists()
    recipe = resolve("again.yaml")
    assert recipe.trainer.steps == 4
    assert recipe.encoder.frozen == 0.5
    shipped = resolve("ctc-100h", "bundled", "/data/LibriSpeech")
    assert (shipped.corpus.subsets, shipped.corpus.validation) == (["train-clean-100"], ["dev-clean"])
    assert finetune.main(["--model=bundled"]) == 2
    assert "corpus.path is not set" in small.capfd.readouterr().err
