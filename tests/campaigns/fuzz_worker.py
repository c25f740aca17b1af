"""One target of the fuzzing campaign in a process of its own: its limits, what an example may not do, what it found.

Started by fuzz.py as `python fuzz_worker.py TARGET EXAMPLES SEED FOLDER`. FOLDER/journal.json says at every moment
which example is being tried, so that a crash or a hang can be laid at its door; FOLDER/failures.json what went wrong.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # first, since the scripts of downstream_recipes put it there too
    sys.path.insert(1, str(HERE))

import importlib
import json
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

MEMORY = 2**31  # bytes an example may take beyond what the process had when it began
SECONDS = 20  # of CPU an example may take; fuzz.py kills the process when this does not end it
SHOWN = 1500  # characters of an example that are kept
PROCESSES = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.spawn"}
NETWORK = {"socket.connect", "socket.getaddrinfo"}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True)
class Target:
    """Inputs, and what must hold for each of them."""

    inputs: SearchStrategy[Any]
    check: Callable[[Any], None]  # called in an empty folder; raises anything where the property does not hold


@dataclass(frozen=True)
class Failure:
    """What was seen, the kind by which it is told from others, and the smallest example of it."""

    kind: str
    message: str
    example: str


class Broken(Exception):
    """A property that does not hold; the message is the kind of failure."""


class TooSlow(BaseException):
    """The time of an example is up; no Exception, which the code under test may catch."""


class Watch:
    """Collects what no example may do: start processes, reach for a network, write outside its folder."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = str(allowed.resolve())
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in PROCESSES | NETWORK:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self._inside(path):
                self.seen.append(f"writes {path!r:.200}")
        elif event in CHANGES and not self._inside(arguments[0]):
            self.seen.append(f"{event} {arguments[0]!r:.200}")

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.path.abspath(os.fsdecode(path))
        return text == os.devnull or text.startswith(self.allowed + os.sep)


@contextmanager
def limited_time() -> Iterator[None]:
    def expire(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    start = time.process_time()
    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again every second, for code that caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if time.process_time() - start > SECONDS:
        raise TooSlow


def limit_memory() -> None:
    """Private memory only: what is mapped from files, or reserved and never touched, is nobody's loss."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    used = int(status["VmData"].split()[0]) * 1024
    for which, most in ((resource.RLIMIT_DATA, used + MEMORY), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(which, (most, resource.getrlimit(which)[1]))


def kind_of(error: BaseException) -> str:
    """The exception's type and the last function of this repository that it passed through."""
    if isinstance(error, Broken):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/.venv/" not in frame.filename]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and HERE.name not in frame.filename]
    where = f" in {Path(own[-1].filename).relative_to(ROOT)}, {own[-1].name}" if own else ""
    return f"{type(error).__name__}{where}"


class Campaign:
    """The examples of one target; every kind of failure is made small once, and then only counted."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.case = folder / "case"
        self.watch = Watch(folder)
        self.tries = 0
        self.failures: dict[str, Failure] = {}

    def run(self, examples: int, seed: int) -> None:
        for turn in range(10**6):
            if self.tries >= examples or not self._search(examples - self.tries, seed + turn):
                return

    def _search(self, examples: int, seed: int) -> bool:
        """Until a new kind of failure is found and made small; whether one was found."""
        found: list[str] = []

        @hypothesis.seed(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        )
        @hypothesis.given(self.target.inputs)
        def holds(example: Any) -> None:
            self.tries += not found
            failure = self._try(example)
            if failure is None or (found and failure.kind != found[0]) or (not found and failure.kind in self.failures):
                return
            found[:] = [failure.kind]
            self.failures[failure.kind] = failure  # the last is the smallest
            self._write("failures.json", [asdict(one) for one in self.failures.values()])
            raise Broken(failure.kind)

        try:
            holds()
        except Broken:
            return True
        except hypothesis.errors.Flaky:
            return True
        return False

    def _try(self, example: Any) -> Failure | None:
        shown = repr(example)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}... ({len(shown)} characters)"
        self._write("journal.json", {"tries": self.tries, "example": shown})
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        os.chdir(self.case)
        self.watch.seen.clear()
        self.watch.active = True
        try:
            with limited_time():
                self.target.check(example)
            if self.watch.seen:
                raise Broken(f"{self.watch.seen[0]}")
        except TooSlow:
            return Failure(f"more than {SECONDS} s", "", shown)
        except BaseException as error:
            if type(error).__module__.startswith("hypothesis") or isinstance(error, KeyboardInterrupt):
                raise
            return Failure(kind_of(error), f"{error}"[:300], shown)
        finally:
            self.watch.active = False
        return None

    def _write(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(json.dumps(value))


def main() -> None:
    name, examples, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).resolve()
    base = folder / "base"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    target = importlib.import_module(f"fuzz_{name}").target(base)
    campaign = Campaign(target, folder)
    sys.dont_write_bytecode = True  # of modules that an example is the first to import
    limit_memory()
    campaign.run(examples, seed)
    (folder / "done.json").write_text(json.dumps({"tries": campaign.tries}))


if __name__ == "__main__":
    sys.modules["fuzz_worker"] = sys.modules["__main__"]  # targets import it by that name
    main()
