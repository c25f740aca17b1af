"""A process that speaks: libespeak-ng through ctypes, requests on stdin, speech on stdout.

libespeak-ng is GPL-3, so nothing else in this project loads it: `distiller.synthesis.espeak` starts this file as a
separate process and exchanges data with it. The library keeps global state, and its speech depends on what it said
before; each request is therefore answered by a child forked from the freshly initialised library, so that the request
alone determines the answer, bit by bit.

A request is one line of JSON, {"text", "voice", "accent", "rate", "pitch", "range"}; an answer is one line of JSON,
{"samples": count, "phones": [[IPA, first sample], ...]} or {"error": message}, then `count` native 16-bit samples at
22,050 Hz. The process ends with its stdin.

    python -P worker.py LIBRARY DATA_DIRECTORY
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

# espeak-ng/speak_lib.h
SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback before espeak_Synth returns
PHONEME_EVENTS, PHONEME_IPA, DONT_EXIT = 0x1, 0x2, 0x8000  # espeak_Initialize's options
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
UTF8 = 1
END_OF_EVENTS, PHONEME = 0, 7  # espeak_EVENT_TYPE


class Event(ctypes.Structure):
    """espeak_EVENT; `id` is a union whose string member holds at most eight bytes of IPA, without a final zero."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def initialise(library_path: str, data: str) -> ctypes.CDLL:
    """Load the library with its data, both absolute paths.

    The library's path buffers are short (160 bytes), so it is given the working directory.
    """
    os.chdir(data)
    library = ctypes.CDLL(library_path)
    if library.espeak_Initialize(SYNCHRONOUS, 0, b".", PHONEME_EVENTS | PHONEME_IPA | DONT_EXIT) < 0:
        raise RuntimeError(f"espeak-ng does not accept its data directory {data}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # espeak_Initialize seeds the noise of breath with the clock
    return library


def set_voice(library: ctypes.CDLL, definition: str) -> None:
    """Load a voice from the text of a voice file; /dev/fd keeps its path short and leaves nothing behind."""
    with tempfile.TemporaryFile() as file:
        file.write(definition.encode())
        file.flush()
        file.seek(0)
        status = library.espeak_ng_SetVoiceByFile(f"/dev/fd/{file.fileno()}".encode())
    if status != 0:
        raise RuntimeError(f"espeak-ng refuses the voice with status {status:#x}: {definition!r}")


def speak(library: ctypes.CDLL, request: dict) -> tuple[bytes, list[tuple[str, int]]]:
    """16-bit samples of a text at the library's rate, and the IPA of each phone with the sample where it begins."""
    audio: list[bytes] = []
    phones: list[tuple[str, int]] = []

    @CALLBACK
    def collect(samples, count, events):
        if count > 0:
            audio.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != END_OF_EVENTS:
            if events[index].type == PHONEME:
                phones.append((events[index].id.decode(errors="replace"), events[index].sample))
            index += 1
        return 0

    accent = next(Path("lang").rglob(request["accent"])).read_text(errors="replace")  # in a folder for its family
    set_voice(library, f"{accent}\n{request['voice']}\n")
    for parameter, key in ((RATE, "rate"), (PITCH, "pitch"), (RANGE, "range")):
        if library.espeak_SetParameter(parameter, request[key], 0) != 0:
            raise RuntimeError(f"espeak-ng refuses {key} {request[key]}")
    library.espeak_SetSynthCallback(collect)
    text = request["text"].encode()
    if library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None) != 0:
        raise RuntimeError(f"espeak-ng cannot speak {request['text']!r}")
    return b"".join(audio), phones


def answer(library: ctypes.CDLL, line: str) -> bytes:
    """The answer to one request: a line of JSON and the samples that it announces."""
    try:
        audio, phones = speak(library, json.loads(line))
        header = {"samples": len(audio) // 2, "phones": phones}
    except Exception as error:  # any kind: the requesting process has to raise it
        audio, header = b"", {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(header).encode() + b"\n" + audio


def main(library_path: str, data: str) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently when the requesting process has ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the requesting process handles interrupts
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the library's own messages must not mix with the answers
    library = initialise(library_path, data)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            output.write(answer(library, line))
            output.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            error = f"espeak-ng died with wait status {status} at {line.strip()}"
            output.write(json.dumps({"error": error}).encode() + b"\n")
            output.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
