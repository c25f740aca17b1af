#!/usr/bin/env bash
# Everything about this project that only a GPU can tell, in at most 8 minutes: what it computes, and how fast.
#
#   distiller/benchmarks/gpu.sh OUT                      tables and log.txt into the folder OUT
#   DEVICE=cpu SMALL=1 distiller/benchmarks/gpu.sh OUT   the same parts in small on a CPU, to try the script
#
# The parts are independent and come in the order of their importance; each has a limit in seconds, and what it has
# measured until then is kept. Exit code 0: all of them passed. OUT then holds eight files, one a part and the log.
# PYTHON is the interpreter (default: python3); COMMIT names the commit where the copy has no repository; PARTS the only
# parts to run ("star skill").
#
# Needs Python with torch, transformers, lightning, lhotse and the rest of pyproject.toml's dependencies. What a machine
# without a network lacks can be carried as wheels. Beside a Python 3.12 that has torch, torchaudio, transformers,
# lightning, tensorboard, scipy, matplotlib, rich, click, tabulate and sortedcontainers these are enough:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels \
#     lhotse audioread cytoolz intervaltree soundfile cffi pycparser pydantic==V pydantic-core==W annotated-types \
#     typing-inspection typing-extensions                # W is the version that pydantic V asks for
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site   # there
set -u
[ $# -eq 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 # nothing is downloaded
device=${DEVICE:-cuda} work=$(mktemp -d) failed=""
export WORK=$work
trap 'rm -rf "$work"' EXIT

part() { # NAME SECONDS COMMAND...: run it for at most SECONDS, keep its table as OUT/NAME.csv
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  [[ " ${PARTS:-$name} " = *" $name "* ]] || return
  [ -z "${SMALL:-}" ] || limit=600 # a slow machine is no failure
  echo "== $name: $*"
  timeout -k 10 "$limit" "$@"
  code=$?
  cat "$work/$name"/*.csv > "$out/$name.csv" 2> /dev/null
  echo "== $name: exit code $code after $((SECONDS - started)) s"
  [ "$code" -eq 0 ] || failed="$failed $name"
}

measure() { # NAME SECONDS OPTIONS...: a part that is one call of benchmark.py
  part "$1" "$2" "$PYTHON" distiller/benchmark.py --device "$device" --output "$work/$1" "${@:3}"
}

if [ -n "${SMALL:-}" ]; then # with the bundled teacher; correctness keeps HuBERT Base
  check="--seconds 0.5 --threads 2 --train star" steps="--seconds 1 --rounds 1 --threads 2 teacher=bundled"
  narrow="student.size=teacher"
  data="teacher=bundled corpus.batch_seconds=3 corpus.window_seconds=3 trainer.accumulate=1 corpus.workers=0"
  main="--loop 1 --hours 0.02 --threads 2 $data" loop="--train skill $main"
  speed="--seconds 1 --batches 1 --rounds 1" long="--long 4 --chunk 2 --overlap 1"
else
  check="--threads $(nproc)" steps="--rounds 4" narrow=""
  main="--loop 30 --hours 3" loop="--train star,skill --loop 6 corpus.batch_seconds=auto"
  speed="--batches 1,8,32 --rounds 5" long="--long 600"
fi

# a student that has been pruned, and its export, which `transformers` runs by our modelling code
export EXPORT='
import sys
from distiller.benchmarks.encoders import SHAPES
from distiller.exporters.transformers import to_transformers
from upstream.checkpoint import save
from upstream.encoder import SpeechEncoder
from pathlib import Path
student = SpeechEncoder(SHAPES["skill"]).eval()
save(student, Path(sys.argv[1]) / "student")
to_transformers(student, Path(sys.argv[1]) / "export", "random weights")
'
encoders='random:hubert-base random:starhubert transformers:random:hubert-base "$WORK/student" transformers:"$WORK/export"'
inference='"$PYTHON" -c "$EXPORT" "$WORK" && exec "$PYTHON" distiller/benchmark.py'

{
  # shellcheck disable=SC2086  # the options are words
  measure correctness 85 --check $check
  measure star 100 --train star $steps $narrow
  measure main 90 --train star $main $narrow
  measure skill 65 --train skill $steps
  measure loop 75 $loop
  PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} part inference 50 \
    bash -c "$inference $encoders --device $device $speed --output \"\$WORK/inference\""
  measure long 15 random:starhubert $long
  echo "${failed:+failed:$failed}"
} > >(tee "$out/log.txt") 2>&1
wait $! # for tee
[ -z "$failed" ]
