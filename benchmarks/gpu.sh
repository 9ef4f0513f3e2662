#!/usr/bin/env bash
# Everything that needs a CUDA device, in parts that do not hide each other's failures.
#   benchmarks/gpu.sh OUT [--only build,env,tests,bench,search]
# OUT receives PART.log, PART's results (JSON, a run's folder) and summary.json {"part": exit code}. Exit 1 if a part failed.
# No network is needed: PYTHON (default .venv/bin/python, else python3) brings torch, and pytest with pytest-benchmark.
set -u
usage="usage: benchmarks/gpu.sh OUT [--only PART,PART...]   parts: build, env, tests, bench, search"
all=(build env tests bench search)

[ $# -eq 1 ] || { [ $# -eq 3 ] && [ "$2" = --only ]; } || { echo "$usage" >&2; exit 2; }
mkdir -p "$1" || exit 1
out=$(cd "$1" && pwd)
IFS=, read -r -a parts <<<"${3:-$(IFS=,; echo "${all[*]}")}"
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

build() { rm -f tas_fast/_C*.so; TAS_FAST_BUILD=cuda "$python" setup.py build_ext --inplace; }
env() { "$python" -m tas_fast.env && "$python" -m tas_fast.env --json >"$out/env.json"; }
device() { "$python" -c 'import torch; torch.cuda.is_available() or exit("no CUDA device")'; }
tests() { device && "$python" -m pytest -q -m gpu tests --junitxml="$out/tests.xml"; }
bench() { device && "$python" -m pytest -q -m gpu benchmarks --benchmark-only --benchmark-json="$out/bench.json"; }
search() { device && "$python" -m tas_fast.search --amp --device cuda --output "$out" --experiment search; }

for part in "${parts[@]}"; do
  case " ${all[*]} " in *" $part "*) ;; *) echo "unknown part '$part'; $usage" >&2; exit 2 ;; esac
done

summary= failed=0
for part in "${parts[@]}"; do
  echo "== $part"
  "$part" >"$out/$part.log" 2>&1
  code=$?
  tail -n 3 "$out/$part.log"
  echo "== $part: exit code $code"
  [ $code -eq 0 ] || failed=1
  summary+="${summary:+, }\"$part\": $code"
done
echo "{$summary}" >"$out/summary.json"
exit $failed
