"""Bytes of an audio file that are a file of their own."""

import io
from io import FileIO


class Slice(io.RawIOBase):
    """A part of an open file as a file of its own, with a `prefix` before it."""

    def __init__(self, file: FileIO, offset: int, size: int, prefix: bytes = b"") -> None:
        self.file, self.offset, self.prefix = file, offset, prefix
        self.size, self.at = len(prefix) + size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self.size - self.at))
        if self.at < len(self.prefix):
            data = self.prefix[self.at : self.at + count]
        else:
            self.file.seek(self.offset + self.at - len(self.prefix))
            data = self.file.read(count)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
