#!/usr/bin/env python
"""Runs ended at random moments and started again, until they finish; then compared with one that was left alone."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import csv
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from distiller.common.files import writing
from distiller.reports import report

EPILOG = """\
examples:
  python tests/campaigns/kills.py --output exp/kills --table docs/results/kills.csv
  python tests/campaigns/kills.py --output exp/kills --table exp/kills.csv --subjects suite --kills 5 --others 2

Each subject first runs twice undisturbed, the second time with the corpora that the first has synthesised. Then, round
after round, it is ended at moments drawn from such a run's duration and started again; the round ends with a run that
may finish, and its artefacts are compared with the first run, byte by byte. Only the first round has to synthesise its
corpora too.
"""
ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"seconds", "step_seconds"}  # columns that no two runs have in common
PER_ROUND = 6  # attempts to end a run before it may finish: fewer rounds would compare less, more would hardly get on
PATIENCE = 120.0  # seconds that a run may take to end itself when it is asked to


@dataclass(frozen=True)
class Subject:
    """A command whose working directory is a round's folder, and what of its output has to be the same."""

    name: str
    command: tuple[str, ...]
    artefacts: tuple[str, ...]  # patterns of files
    tables: tuple[str, ...]  # those that hold times as well
    lists: tuple[str, ...] = ()  # those whose lines come in any order


SKILL = Subject(
    "skill",
    (
        "distiller/run.py", "--method", "skill", "--output", "run", "trainer.steps=30", "trainer.validate_every=10",
        "trainer.checkpoint_every=5", "corpus.batch_seconds=6", "probe.enabled=false",
    ),
    ("run/**/*.safetensors", "run/**/config.json", "run/**/clusters.json", "run/**/held_out.csv", "run/distances.csv",
     "cache/synthesis/**/*.flac", "cache/synthesis/**/cuts.jsonl"),
    ("run/*/metrics.csv",),
)  # fmt: skip
SUITE = Subject(
    "suite",
    (
        "downstream_recipes/superb.py", "-u", "starhubert", "-k", "{student}", "--corpora", "mini", "--tasks",
        "ks,ic,qbe", "--output", "suite", "--device", "cpu",
    ),
    ("suite/**/*-best.ckpt", "suite/**/states-*.ckpt", "suite/**/*_predict.txt"),
    ("suite/scores.csv",),
    ("suite/**/benchmark.stdlist.xml",),  # by s3prl's processes, each when it is ready
)  # fmt: skip
SUBJECTS = {subject.name: subject for subject in (SKILL, SUITE)}


def kill(process: subprocess.Popen) -> None:
    process.kill()


def terminate(process: subprocess.Popen) -> None:
    process.terminate()


def interrupt(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)


def kill_worker(process: subprocess.Popen) -> None:
    """`kill -9` of one of its processes, as soon as it has one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        with suppress(ProcessLookupError, FileNotFoundError):  # the worker, or the run, has just ended
            if found := children.read_text().split():
                os.kill(int(random.choice(found)), signal.SIGKILL)
                return
        time.sleep(0.05)


END: dict[str, Callable[[subprocess.Popen], None]] = {
    "kill -9": kill,
    "SIGTERM": terminate,
    "Ctrl-C": interrupt,
    "kill -9 of a worker": kill_worker,
}


class Round:
    """One output of a subject: made in a folder of the same name every time, as checkpoints hold paths."""

    def __init__(self, subject: Subject, folder: Path, student: str) -> None:
        self.subject, self.folder, self.here = subject, folder, folder.parent / "here"
        self.command = [argument.replace("{student}", student) for argument in subject.command]
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True)

    def is_given_corpora(self, reference: "Round") -> None:
        shutil.copytree(reference.folder / "cache", self.here / "cache")

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"SPEECH_DISTILLER_CACHE": str(self.here / "cache")}
        script, *arguments = self.command
        with (self.here / "log.txt").open("ab") as log:  # no pipe: orphaned workers would keep it open
            command = [sys.executable, str(ROOT / script), *arguments]
            # started in the background, a campaign ignores Ctrl-C, and would hand that down
            return subprocess.Popen(
                command, cwd=self.here, env=environment, stdout=log, stderr=log, preexec_fn=_heed_interrupts
            )

    def completes(self) -> float:
        """Seconds of a run that nobody ends.

        Raises:
            RuntimeError: it failed.
        """
        begun = time.monotonic()
        if self.start().wait() != 0:
            raise RuntimeError(f"{self.subject.name} fails by itself:\n{self.said(20)}")
        return time.monotonic() - begun

    def ended_by(self, cause: str, delay: float) -> tuple[int, float] | None:
        """Exit code of a run that meets `cause` after `delay` seconds, and the seconds it still took.

        None when it finished before.
        """
        process = self.start()
        try:
            process.wait(timeout=delay)
            return None
        except subprocess.TimeoutExpired:
            END[cause](process)
        begun = time.monotonic()
        try:
            code = process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = -signal.SIGALRM  # it did not end
        return code, time.monotonic() - begun

    def said(self, lines: int = 1) -> str:
        text = (self.here / "log.txt").read_text(errors="replace").replace("\r", "\n")
        return "\n".join([line.strip() for line in text.split("\n") if line.strip()][-lines:])

    def keep(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.here.rename(self.folder)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def contents(subject: Subject, folder: Path) -> dict[str, object]:
    """Everything of a finished round that has to be the same, by its path."""
    found: dict[str, object] = {}
    for pattern in subject.artefacts:
        found |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}
    for path in (path for pattern in subject.lists for path in folder.glob(pattern)):
        found[str(path.relative_to(folder))] = sorted(path.read_text().splitlines())
    for path in (path for pattern in subject.tables for path in folder.glob(pattern)):
        with path.open() as file:
            rows = [{key: line[key] for key in line if key not in CLOCKS} for line in csv.DictReader(file)]
        found[str(path.relative_to(folder))] = rows
    return found


def differences(subject: Subject, reference: Path, folder: Path) -> list[str]:
    first, second = contents(subject, reference), contents(subject, folder)
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def schedule(kills: int, others: int, seed: int) -> list[str]:
    """So many `kill -9` and so many of every other end, shuffled."""
    causes = ["kill -9"] * kills + [cause for cause in END if cause != "kill -9" for _ in range(others)]
    random.Random(seed).shuffle(causes)
    return causes


def campaign(subject: Subject, causes: Sequence[str], output: Path, student: str, seed: int) -> Iterator[dict]:
    """A row for every end of a run and one for every comparison."""
    home = output / subject.name
    chance, waiting, number = random.Random(f"{seed} {subject.name}"), list(causes), 0
    first = Round(subject, home / "reference", student)
    whole = first.completes()
    first.keep()
    yield row(subject, 0, "left alone", whole, 0, f"{len(contents(subject, first.folder))} artefacts")
    again = Round(subject, home / "again", student)
    again.is_given_corpora(first)
    shorter, compared = _completes(again, first)
    yield row(subject, 0, "left alone", shorter, 0, compared)
    while waiting:
        number += 1
        one = Round(subject, home / f"round-{number}", student)
        if number > 1:
            one.is_given_corpora(first)
        for cause in waiting[:PER_ROUND]:
            delay = chance.uniform(0, whole if number == 1 else shorter)
            ended = one.ended_by(cause, delay)
            if ended is None:
                break
            waiting.pop(0)
            code, after = ended
            if code == 0:
                outcome = "finished all the same"
            else:
                outcome = one.said()[:200] if code > 0 else f"dead after {after:.1f} s"
            yield row(subject, number, cause, delay, code, outcome)
        seconds, compared = _completes(one, first)
        yield row(subject, number, "finishes", seconds, 0, compared)


def _completes(one: Round, reference: Round) -> tuple[float, str]:
    """Seconds of the run that may finish, and how its artefacts compare with the reference's."""
    seconds = one.completes()
    one.keep()
    different = differences(one.subject, reference.folder, one.folder)
    return seconds, f"different: {', '.join(different)}" if different else "identical"


def row(subject: Subject, number: int, event: str, seconds: float, code: int, outcome: str) -> dict:
    return {
        "subject": subject.name, "round": number, "event": event, "seconds": round(seconds, 1), "exit_code": code,
        "outcome": outcome,
    }  # fmt: skip


def write_table(rows: Sequence[dict], path: Path) -> None:
    """The whole table anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when nothing was lost, 1 when something was."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the runs go")
    parser.add_argument("--table", type=Path, required=True, metavar="CSV", help="written anew after every event")
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help=f"({','.join(SUBJECTS)})")
    parser.add_argument("--kills", type=int, default=25, help="kill -9 of each subject (25)")
    parser.add_argument("--others", type=int, default=3, help="of each other end, of each subject (3)")
    parser.add_argument("--student", default=str(ROOT / "distiller/assets/teacher"), help="that the suite evaluates")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    causes, rows = schedule(options.kills, options.others, options.seed), []
    student, output = str(Path(options.student).resolve()), options.output.resolve()
    command = shlex.join(["python", "tests/campaigns/kills.py", *sys.argv[1:]])
    origin = {"machine": report.machine(), "commit": report.commit(), "command": command}
    for name in options.subjects.split(","):
        for one in campaign(SUBJECTS[name], causes, output, student, options.seed):
            rows.append(one | origin)
            print(*one.values(), sep="  ", flush=True)
            write_table(rows, options.table)
    lost = [one for one in rows if one["outcome"].startswith("different")]
    print(f"{sum(one['event'] in END for one in rows)} ends, {len(lost)} rounds that came out different")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
