"""The entries that s3prl and torch.hub call: NAME, NAME_local and NAME_url for each model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .download import RemoteFile, fetch, is_url
from .errors import UserError
from .expert import UpstreamExpert


@dataclass(frozen=True)
class _Model:
    """The published weights of a model and the hidden states that it exposes."""

    about: str
    states: str  # as in UpstreamExpert
    files: tuple[RemoteFile, ...] = ()  # the checkpoint, then its configuration; (): not published
    recipe: str = ""  # arguments of distiller/run.py that train one, if none is published


def _star(about: str, name: str, *identifiers: str, sha256: tuple[str | None, ...] = (None, None)) -> _Model:
    """A model of STaR's authors: its .ckpt and its .yaml on Google Drive, and their digests if known."""
    url, parts = "https://drive.google.com/file/d/", zip((".ckpt", ".yaml"), identifiers, sha256, strict=True)
    files = (RemoteFile(url + key, name + suffix, sha256=digest) for suffix, key, digest in parts)
    return _Model(about, "layers", tuple(files))


def _dphubert(about: str, name: str, sha256: str | None = None) -> _Model:
    """A model of DPHuBERT's authors on Hugging Face, and its digest if known."""
    url = f"https://huggingface.co/pyf98/DPHuBERT/blob/main/{name}"
    return _Model(about, "projected", (RemoteFile(url, name, "pyf98/DPHuBERT", sha256=sha256),))


_MODELS = {
    "starhubert": _star(
        "STaRHuBERT, 22.3 M parameters, distilled from HuBERT Base",
        "starhubert", "1Zu1idRx-sVaqMvRsUKtttzkSn4df6TUr", "1C6ZcYM4Fcxj0vurid5N02BAANj4smr8U",
    ),
    "starhubert_l": _star(
        "STaRHuBERT-L, 26.6 M parameters, distilled from HuBERT Base",
        "starhubert_l", "1La5jh0jPv-JCk2ECT2raRHtXMYYJNtsF", "1NpHhMVj7EE1Sx5eG3tX5fMCa4UUlrnwI",
    ),
    "starhubert_s": _star(
        "STaRHuBERT-S, 14.1 M parameters, distilled from HuBERT Base",
        "starhubert_s", "1sUpbDupbDtlCvN-49TblUn8GDmhV8MT8", "1OFjIo1UjxNrxEboKaT8Z-vtuL6xmyNsu",
    ),
    "starhubert_xs": _Model(  # the authors' page links the files of S a second time
        "STaRHuBERT-XS, 9.39 M parameters, distilled from HuBERT Base",
        "layers", recipe="--recipe star-hubert-960h student.size=XS",
    ),
    "starwavlm": _star(
        "STaRWavLM, 22.3 M parameters, distilled from WavLM Base",
        "starwavlm", "1gWq55o0HfarwgfRpY_2ncmr7jfhtIKR-", "1p79PqwbEarBDm2X7k2DEbsN_lE3pgqki",
    ),
    "skhubert": _Model(
        "SKHuBERT, pruned from HuBERT Base with SKILL", "projected", recipe="--recipe skill-hubert-960h"
    ),
    "skwavlm": _Model(
        "SKWavLM, pruned from WavLM Base+ with SKILL", "projected", recipe="--recipe skill-wavlm-plus-960h"
    ),
    "dphubert": _dphubert("DPHuBERT, 23,585,946 parameters, pruned from HuBERT Base", "DPHuBERT-sp0.75.pth"),
    "dpwavlm": _dphubert("DPWavLM, 23,586,325 parameters, pruned from WavLM Base+", "DPWavLM-sp0.75.pth"),
}  # fmt: skip

_ARGUMENTS = """
Args:
    ckpt: {ckpt}
    model_config: the configuration file of a checkpoint that does not contain it (STaR's YAML; a path or a URL), or
        options as text: states=layers|projected|all, padding=invariant|reference, chunk_seconds=30 for long wavs, which
        are then computed in bounded memory. Default: states={states}, every wav in one piece.
    refresh: fetch files again that are in the cache.
    kwargs: states, padding and chunk_seconds, as in model_config.

Returns:
    upstream.expert.UpstreamExpert in eval mode: a list of 16 kHz wavs -> {{"hidden_states": list of
    (batch, frame, channel), "last_hidden_state": (batch, frame, channel)}}.
"""
_ANY_FORMAT = "one of our folders or Hugging Face's, STaR's .ckpt, DPHuBERT's .pth"
_KINDS = {
    "": f"{_ANY_FORMAT}; a path, a URL or a Hugging Face ORG/NAME. Default: the published weights.",
    "local": f"{_ANY_FORMAT}; a path.",
    "url": f"{_ANY_FORMAT}; a URL of one file.",
}


def _entry(name: str, kind: str) -> Callable[..., UpstreamExpert]:
    """The entry of a model; with `kind` "local" or "url" the user must supply the checkpoint."""
    model, full_name = _MODELS[name], f"{name}_{kind}" if kind else name

    def entry(
        ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any
    ) -> UpstreamExpert:
        if kind == "local" and (ckpt is None or not Path(ckpt).exists()):
            raise UserError(f"ckpt (-k) is {ckpt}, but for {full_name} it must be the path of a checkpoint")
        if kind == "url" and not is_url(ckpt):
            raise UserError(f"ckpt (-k) is {ckpt}, but for {full_name} it must be the URL of a checkpoint")
        checkpoint = _published(name, refresh) if ckpt is None else _fetched(ckpt, refresh)
        return UpstreamExpert(checkpoint, _fetched(model_config, refresh), **{"states": model.states, **kwargs}).eval()

    entry.__name__ = entry.__qualname__ = full_name
    entry.__doc__ = f"{model.about}.\n{_ARGUMENTS.format(ckpt=_KINDS[kind], states=model.states)}"
    return entry


def _fetched(source: str | None, refresh: bool) -> Any:
    """The cached copy of a URL; everything else unchanged."""
    return fetch(RemoteFile.from_url(source), refresh) if source is not None and is_url(source) else source


def _published(name: str, refresh: bool) -> Path:
    """The published checkpoint in the cache, with its configuration beside it."""
    model = _MODELS[name]
    if not model.files:
        raise UserError(
            f"no weights are published for {name}: train a student with 'python distiller/run.py {model.recipe} "
            "--corpus /path/to/LibriSpeech' and give its folder as ckpt (-k)"
        )
    checkpoint, *_ = [fetch(file, refresh) for file in model.files]
    return checkpoint


_ENTRIES = {entry.__name__: entry for entry in (_entry(name, kind) for name in _MODELS for kind in _KINDS)}
globals().update(_ENTRIES)
__all__ = list(_ENTRIES)  # pyright: ignore[reportUnsupportedDunderAll]
