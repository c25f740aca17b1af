"""What each corpus must contain, and where it comes from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from downstream_recipes.tasks.preparation import ASR_SPLITS

PARTS = ("train", "dev", "test")
TENSORFLOW = "download.tensorflow.org/data"


@dataclass(frozen=True)
class Layout:
    """What a key of the corpora file refers to.

    Args:
        needs: globs below the corpus that must each match something; none: the key refers to a file.
        source: where to get it.
        audio: the glob of its audio files; "": its wav.scp files list them.
        several: whether a list of paths is allowed.
    """

    needs: tuple[str, ...]
    source: str
    audio: str = ""
    several: bool = False


CORPORA: Mapping[str, Layout] = {
    "librispeech": Layout(
        tuple(f"{split}/*/*/*{suffix}" for split in ASR_SPLITS for suffix in (".flac", ".trans.txt")),
        "openslr.org/12: train-clean-100, dev-clean, test-clean",
        "*-clean*/*/*/*.flac",
    ),
    "lexicon": Layout((), "s3prl/downstream/ctc/lexicon in s3prl's repository", several=True),
    "speech_commands": Layout(
        ("yes/*.wav", "_background_noise_/*.wav"), f"{TENSORFLOW}/speech_commands_v0.01.tar.gz", "*/*.wav"
    ),
    "speech_commands_test": Layout(
        ("yes/*.wav", "_unknown_/*.wav", "_silence_/*.wav"),
        f"{TENSORFLOW}/speech_commands_test_set_v0.01.tar.gz",
        "*/*.wav",
    ),
    "quesst14": Layout(
        (
            "Audio/*.wav",
            "scoring/language_key_utterances.lst",
            *(f"scoring/language_key_{split}.lst" for split in ("dev", "eval")),
            *(f"scoring/groundtruth_quesst14_{split}/quesst14_{split}.rttm" for split in ("dev", "eval")),
        ),
        "speech.fit.vutbr.cz/files/quesst14Database.tgz",
        "*/*.wav",
    ),
    "voxceleb1": Layout(
        ("dev/wav/id*/*/*.wav", "test/wav/id*/*/*.wav"),
        "robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
        "*/wav/*/*/*.wav",
    ),
    "voxceleb1_split": Layout((), "iden_split.txt of VoxCeleb1's page"),
    "voxceleb1_trials": Layout((), "veri_test2.txt of VoxCeleb1's page"),
    "libri2mix_diarization": Layout(
        (
            *(f"{part}/{name}" for part in PARTS for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur")),
            "test/rttm",
        ),
        "github.com/s3prl/LibriMix: generate_librimix_sd.sh, then scripts/prepare_diarization.py",
    ),
    "fluent_commands": Layout(
        (*(f"data/{split}_data.csv" for split in ("train", "valid", "test")), "wavs/speakers/*/*.wav"),
        "fluent.ai: Fluent Speech Commands",
        "wavs/speakers/*/*.wav",
    ),
    "snips": Layout(
        ("train/*.wav", "valid/*.wav", "test/*.wav", "all.iob.snips.txt", "slots.txt"),
        "s3prl's preprocess/snips_prepare_data.sh",
        "*/*.wav",
    ),
    "iemocap": Layout(
        tuple(
            f"Session{number}/{path}"
            for number in range(1, 6)
            for path in ("sentences/wav/*/*.wav", "dialog/EmoEvaluation/*.txt")
        ),
        "sail.usc.edu/iemocap",
        "Session*/sentences/wav/*/*.wav",
    ),
    "voicebank": Layout(
        tuple(f"{part}/{signal}/wav.scp" for part in PARTS for signal in ("noisy", "clean")),
        "s3prl's downstream/enhancement_stft/scripts/Voicebank/data_prepare.py",
    ),
    "libri2mix_separation": Layout(
        tuple(
            f"{part}/{name}/wav.scp" for part in ("train-100", "dev_1000", "test") for name in ("mix_clean", "s1", "s2")
        ),
        "s3prl's downstream/separation_stft/scripts/LibriMix/data_prepare.py",
    ),
}


def faults(name: str, value: str | list[str] | None, contents: bool = True) -> Iterator[str]:
    """What is wrong with the path or paths of a corpus (None: not listed); fast for corpora of any size.

    Args:
        contents: also check the contents that the layout needs.
    """
    paths = list(map(Path, value if isinstance(value, list) else [value] if value else []))
    missing = [path for path in paths if not path.exists()]
    needs = CORPORA[name].needs if name in CORPORA else ()
    if not paths:
        yield "not in the corpora file"
    elif missing or not contents:
        yield from (f"{path} does not exist" for path in missing)
    elif needs:
        yield from (f"nothing at {paths[0] / need}" for need in needs if not any(paths[0].glob(need)))
    else:
        yield from (f"{path} is a folder, but it must be a file" for path in paths if path.is_dir())
