"""The entries that s3prl and torch.hub call. Every public name of this module is one."""

from collections.abc import Callable as _Callable
from dataclasses import dataclass as _dataclass
from pathlib import Path as _Path
from typing import Any as _Any

from .download import RemoteFile as _RemoteFile
from .download import fetch as _fetch
from .download import is_url as _is_url
from .errors import UserError as _UserError
from .expert import UpstreamExpert as _UpstreamExpert


@_dataclass(frozen=True)
class _Model:
    """What an entry's name stands for: its default weights and the hidden states it exposes."""

    about: str
    states: str  # as UpstreamExpert's
    files: tuple[_RemoteFile, ...] = ()  # the checkpoint, then its configuration; none: not published
    recipe: str = ""  # arguments of distiller/run.py that train one, where none is published


def _drive(name: str, identifier: str) -> _RemoteFile:
    return _RemoteFile(f"https://drive.google.com/file/d/{identifier}", name)


def _hugging_face(repository: str, name: str) -> _RemoteFile:
    return _RemoteFile(f"https://huggingface.co/{repository}/blob/main/{name}", name, repository)


_MODELS = {
    "starhubert": _Model(
        "STaRHuBERT, 22.3 M parameters, distilled from HuBERT Base",
        "layers",
        (
            _drive("starhubert.ckpt", "1Zu1idRx-sVaqMvRsUKtttzkSn4df6TUr"),
            _drive("starhubert.yaml", "1C6ZcYM4Fcxj0vurid5N02BAANj4smr8U"),
        ),
    ),
    "starhubert_l": _Model(
        "STaRHuBERT-L, 26.6 M parameters, distilled from HuBERT Base",
        "layers",
        (
            _drive("starhubert_l.ckpt", "1La5jh0jPv-JCk2ECT2raRHtXMYYJNtsF"),
            _drive("starhubert_l.yaml", "1NpHhMVj7EE1Sx5eG3tX5fMCa4UUlrnwI"),
        ),
    ),
    "starhubert_s": _Model(
        "STaRHuBERT-S, 14.1 M parameters, distilled from HuBERT Base",
        "layers",
        (
            _drive("starhubert_s.ckpt", "1sUpbDupbDtlCvN-49TblUn8GDmhV8MT8"),
            _drive("starhubert_s.yaml", "1OFjIo1UjxNrxEboKaT8Z-vtuL6xmyNsu"),
        ),
    ),
    "starhubert_xs": _Model(  # the authors' page links the S files a second time
        "STaRHuBERT-XS, 9.39 M parameters, distilled from HuBERT Base",
        "layers",
        recipe="--recipe star-hubert-960h student.size=XS",
    ),
    "starwavlm": _Model(
        "STaRWavLM, 22.3 M parameters, distilled from WavLM Base",
        "layers",
        (
            _drive("starwavlm.ckpt", "1gWq55o0HfarwgfRpY_2ncmr7jfhtIKR-"),
            _drive("starwavlm.yaml", "1p79PqwbEarBDm2X7k2DEbsN_lE3pgqki"),
        ),
    ),
    "skhubert": _Model(
        "SKHuBERT, pruned from HuBERT Base with SKILL", "projected", recipe="--recipe skill-hubert-960h"
    ),
    "skwavlm": _Model(
        "SKWavLM, pruned from WavLM Base+ with SKILL", "projected", recipe="--recipe skill-wavlm-plus-960h"
    ),
    "dphubert": _Model(
        "DPHuBERT, 23,585,946 parameters, pruned from HuBERT Base",
        "projected",
        (_hugging_face("pyf98/DPHuBERT", "DPHuBERT-sp0.75.pth"),),
    ),
    "dpwavlm": _Model(
        "DPWavLM, 23,586,325 parameters, pruned from WavLM Base+",
        "projected",
        (_hugging_face("pyf98/DPHuBERT", "DPWavLM-sp0.75.pth"),),
    ),
}

_ARGUMENTS = """
Args:
    ckpt: {ckpt}
    model_config: the configuration file of a checkpoint that keeps it apart (STaR's YAML; a path or a URL), or
        options as text: states=layers|projected|all, padding=invariant|reference. Default: states={states}.
    refresh: fetch again what is already in the cache.
    kwargs: states and padding, as in model_config.

Returns:
    upstream.expert.UpstreamExpert in eval mode: a list of 1-D 16 kHz tensors -> {{"hidden_states": list of
    (batch, frame, channel), "last_hidden_state": (batch, frame, channel)}}.
"""
_ANY_FORMAT = "a folder of this project or of Hugging Face, STaR's .ckpt, DPHuBERT's .pth"
_KINDS = {
    "": f"{_ANY_FORMAT}; a path, a URL or a Hugging Face ORG/NAME. Default: the published weights.",
    "local": f"{_ANY_FORMAT}; a path.",
    "url": f"{_ANY_FORMAT}; a URL of one file.",
}


def _entry(name: str, kind: str = "") -> _Callable[..., _UpstreamExpert]:
    """The entry of a model; `kind` "local" or "url" insists on a checkpoint of the user's own."""
    model, full_name = _MODELS[name], f"{name}_{kind}" if kind else name

    def entry(
        ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: _Any
    ) -> _UpstreamExpert:
        _check(full_name, kind, ckpt)
        options = {"states": model.states, **kwargs}
        if ckpt is None:
            checkpoint, options_text = _published(name, refresh), model_config
        else:
            checkpoint = _fetch(_RemoteFile.from_url(ckpt), refresh) if _is_url(ckpt) else ckpt
            options_text = model_config
            if _is_url(model_config):
                options_text = str(_fetch(_RemoteFile.from_url(str(model_config)), refresh))
        return _UpstreamExpert(checkpoint, options_text, **options).eval()

    entry.__name__ = entry.__qualname__ = full_name
    entry.__doc__ = f"{model.about}.\n{_ARGUMENTS.format(ckpt=_KINDS[kind], states=model.states)}"
    return entry


def _check(name: str, kind: str, ckpt: str | None) -> None:
    if kind == "local" and (ckpt is None or not _Path(ckpt).exists()):
        raise _UserError(f"{name}: needs the path of a checkpoint (-k, or ckpt=), not {ckpt}")
    if kind == "url" and not _is_url(ckpt):
        raise _UserError(f"{name}: needs the URL of a checkpoint (-k, or ckpt=), not {ckpt}")


def _published(name: str, refresh: bool) -> _Path:
    """The published checkpoint in the cache, its configuration beside it."""
    model = _MODELS[name]
    if not model.files:
        raise _UserError(
            f"{name}: no weights are published; train one with 'python distiller/run.py {model.recipe} "
            "--corpus /path/to/LibriSpeech' and give its student folder as the checkpoint (-k, or ckpt=)"
        )
    checkpoint, *_ = [_fetch(file, refresh) for file in model.files]
    return checkpoint


starhubert = _entry("starhubert")
starhubert_local = _entry("starhubert", "local")
starhubert_url = _entry("starhubert", "url")
starhubert_l = _entry("starhubert_l")
starhubert_l_local = _entry("starhubert_l", "local")
starhubert_l_url = _entry("starhubert_l", "url")
starhubert_s = _entry("starhubert_s")
starhubert_s_local = _entry("starhubert_s", "local")
starhubert_s_url = _entry("starhubert_s", "url")
starhubert_xs = _entry("starhubert_xs")
starhubert_xs_local = _entry("starhubert_xs", "local")
starhubert_xs_url = _entry("starhubert_xs", "url")
starwavlm = _entry("starwavlm")
starwavlm_local = _entry("starwavlm", "local")
starwavlm_url = _entry("starwavlm", "url")
skhubert = _entry("skhubert")
skhubert_local = _entry("skhubert", "local")
skhubert_url = _entry("skhubert", "url")
skwavlm = _entry("skwavlm")
skwavlm_local = _entry("skwavlm", "local")
skwavlm_url = _entry("skwavlm", "url")
dphubert = _entry("dphubert")
dphubert_local = _entry("dphubert", "local")
dphubert_url = _entry("dphubert", "url")
dpwavlm = _entry("dpwavlm")
dpwavlm_local = _entry("dpwavlm", "local")
dpwavlm_url = _entry("dpwavlm", "url")
