#!/usr/bin/env python
"""A fuzzing campaign: inputs that nobody would write, against what must hold for any of them.

python tests/campaigns/fuzz.py                                           # every target, 2000 examples each
python tests/campaigns/fuzz.py --targets checkpoints --examples 20000 --seed 7
python tests/campaigns/fuzz.py --table docs/results/fuzz.csv             # a row for each target, failures beside it

Each target (tests/campaigns/fuzz_TARGET.py) is tried in a process of its own with little memory and little time, so
that a crash, a hang or a process that is killed is a failure with its example too.
Exit code: 0; 1 when anything failed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import csv
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TARGETS = ("audio", "manifests", "recipes", "commands", "checkpoints")
WORKER = Path(__file__).with_name("fuzz_worker.py")
HANG = 600.0  # seconds without another example, though each may take 20 of CPU: code that no signal reaches
START = 600.0  # seconds until the first example
POLL = 0.2
FINISHED = "%Y-%m-%dT%H:%MZ"
RESTARTS = 20  # of a process that crashes or hangs


@dataclass(frozen=True)
class Outcome:
    """What trying one target gave."""

    tries: int
    seconds: float
    failures: list[dict[str, str]]  # kind, message, example


def explore(name: str, examples: int, seed: int, folder: Path) -> Outcome:
    """Try a target; a process that ends badly is a failure, and another goes on with what is left."""
    start, tries, failures = time.monotonic(), 0, {}
    for turn in range(RESTARTS):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.json"):
            file.unlink()
        ending = _watched(name, examples - tries, seed + 1000 * turn, folder)
        journal = _read(folder / "journal.json") or {"tries": 0, "example": ""}
        for failure in _read(folder / "failures.json") or []:
            failures.setdefault(failure["kind"], failure)
        tries += journal["tries"]
        if ending is None:
            break
        failures.setdefault(ending, {"kind": ending, "message": "", "example": journal["example"]})
        if not journal["tries"] or tries >= examples:
            break
    return Outcome(tries, time.monotonic() - start, list(failures.values()))


def _watched(name: str, examples: int, seed: int, folder: Path) -> str | None:
    """Run a worker; how it ended when it did not end well."""
    command = [sys.executable, str(WORKER), name, str(examples), str(seed), str(folder)]
    log = folder / "worker.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)
    journal, started = folder / "journal.json", time.time()
    while process.poll() is None:
        time.sleep(POLL)
        alive = journal.stat().st_mtime + HANG if journal.exists() else started + START
        if time.time() > alive:
            process.kill()
            process.wait()
            return "hang"
    if (folder / "done.json").exists():
        return None
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    return f"exit code {process.returncode}: {last[:200]}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or cut short by a crash
        return None


def append(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a CSV, which has a header from its first row on."""
    if not rows:
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"with commas between ({','.join(TARGETS)})")
    parser.add_argument("--examples", type=int, default=2000, help="of each target (2000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed tries the same examples (0)")
    parser.add_argument("--table", type=Path, help="CSV that gets a row for each target")
    options = parser.parse_args(argv)
    options.targets = options.targets.split(",")
    unknown = set(options.targets) - set(TARGETS)
    if unknown or options.examples < 1:
        parser.error(f"no target {unknown.pop()}" if unknown else "--examples must be at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    from distiller.common.provenance import commit, machine

    command = shlex.join(["python", "tests/campaigns/fuzz.py", *(sys.argv[1:] if argv is None else argv)])
    facts = {"seed": options.seed, "commit": commit(), "machine": machine(), "command": command}
    failed = False
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        for name in options.targets:
            outcome = explore(name, options.examples, options.seed, Path(folder, name))
            failures = outcome.failures
            print(f"{name}: {outcome.tries} examples in {outcome.seconds:.0f} s, {len(failures)} failures", flush=True)
            for one in failures:
                print(f"  {one['kind']}\n    {one['message']}\n    smallest example: {one['example']}", flush=True)
            failed |= bool(failures)
            if options.table:
                row = {"target": name, "examples": outcome.tries, "failures": len(failures)}
                row |= {"seconds": round(outcome.seconds, 1), "finished": time.strftime(FINISHED, time.gmtime())}
                append(options.table, [row | facts])
                known = {"target": name, "commit": facts["commit"]}
                said = [known | {"failure": one["kind"], "example": one["example"]} for one in failures]
                append(options.table.with_name(f"{options.table.stem}-failures.csv"), said)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
