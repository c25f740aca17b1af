"""What each corpus has to contain, and where it comes from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from downstream_recipes.tasks.preparation import ASR_SPLITS

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class Contents:
    """Globs below a corpus that must each match something (none: it is files), where to get it, which are its audio."""

    needs: tuple[str, ...]
    source: str
    audio: str = ""


CORPORA: Mapping[str, Contents] = {
    "librispeech": Contents(
        tuple(f"{split}/*/*/*{suffix}" for split in ASR_SPLITS for suffix in (".flac", ".trans.txt")),
        "openslr.org/12: train-clean-100, dev-clean, test-clean",
        "*-clean*/*/*/*.flac",
    ),
    "lexicon": Contents((), "s3prl/downstream/ctc/lexicon in s3prl's repository"),
    "speech_commands": Contents(
        ("yes/*.wav", "_background_noise_/*.wav"),
        "download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
        "*/*.wav",
    ),
    "speech_commands_test": Contents(
        ("yes/*.wav", "_unknown_/*.wav", "_silence_/*.wav"),
        "download.tensorflow.org/data/speech_commands_test_set_v0.01.tar.gz",
        "*/*.wav",
    ),
    "quesst14": Contents(
        (
            "Audio/*.wav",
            "scoring/language_key_utterances.lst",
            *(f"scoring/language_key_{split}.lst" for split in ("dev", "eval")),
            *(f"scoring/groundtruth_quesst14_{split}/quesst14_{split}.rttm" for split in ("dev", "eval")),
        ),
        "speech.fit.vutbr.cz/files/quesst14Database.tgz",
        "*/*.wav",
    ),
    "voxceleb1": Contents(
        ("dev/wav/id*/*/*.wav", "test/wav/id*/*/*.wav"),
        "robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
        "*/wav/*/*/*.wav",
    ),
    "voxceleb1_split": Contents((), "iden_split.txt of VoxCeleb1's page"),
    "voxceleb1_trials": Contents((), "veri_test2.txt of VoxCeleb1's page"),
    "libri2mix_diarization": Contents(
        (
            *(f"{part}/{name}" for part in PARTS for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur")),
            "test/rttm",
        ),
        "github.com/s3prl/LibriMix: generate_librimix_sd.sh, then scripts/prepare_diarization.py",
    ),
    "fluent_commands": Contents(
        (*(f"data/{split}_data.csv" for split in ("train", "valid", "test")), "wavs/speakers/*/*.wav"),
        "fluent.ai: Fluent Speech Commands",
        "wavs/speakers/*/*.wav",
    ),
    "snips": Contents(
        ("train/*.wav", "valid/*.wav", "test/*.wav", "all.iob.snips.txt", "slots.txt"),
        "s3prl's preprocess/snips_prepare_data.sh",
        "*/*.wav",
    ),
    "iemocap": Contents(
        tuple(
            f"Session{number}/{path}"
            for number in range(1, 6)
            for path in ("sentences/wav/*/*.wav", "dialog/EmoEvaluation/*.txt")
        ),
        "sail.usc.edu/iemocap",
        "Session*/sentences/wav/*/*.wav",
    ),
    "voicebank": Contents(
        tuple(f"{part}/{signal}/wav.scp" for part in PARTS for signal in ("noisy", "clean")),
        "s3prl's downstream/enhancement_stft/scripts/Voicebank/data_prepare.py",
    ),
    "libri2mix_separation": Contents(
        tuple(
            f"{part}/{name}/wav.scp" for part in ("train-100", "dev_1000", "test") for name in ("mix_clean", "s1", "s2")
        ),
        "s3prl's downstream/separation_stft/scripts/LibriMix/data_prepare.py",
    ),
}


def faults(name: str, value: str | list[str]) -> Iterator[str]:
    """What keeps the path or paths of a corpus from being it: quick, whatever its size. Stops at what is not there."""
    paths = [Path(path) for path in (value if isinstance(value, list) else [value])]
    absent = [f"{path} does not exist" for path in paths if not path.exists()]
    needs = CORPORA[name].needs
    if absent:
        yield from absent
    elif needs:
        yield from (f"nothing at {paths[0] / need}" for need in needs if not any(paths[0].glob(need)))
    else:
        yield from (f"{path} is a folder; the file itself is needed" for path in paths if path.is_dir())
