#!/usr/bin/env bash
# Everything that needs a CUDA device, in parts that do not hide each other's failures.
#   benchmarks/gpu.sh OUT [--only PART,PART...]
# OUT receives PART.log, PART's results (JSON, Markdown, a run's folder) and summary.json {"part": exit code}. Exit 1 if a part
# failed. tests and bench use what serves by default; tests_triton and bench_triton keep the CUDA library away; sanitizer looks
# for accesses outside of tensors and for races in shared memory.
# No network is needed: PYTHON (default .venv/bin/python, else python3) brings torch, and pytest with pytest-benchmark.
set -u
all=(build env tests tests_triton sanitizer bench bench_triton search)
usage="usage: benchmarks/gpu.sh OUT [--only PART,PART...]   parts: ${all[*]}"

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
tests_triton() { TAS_FAST_BACKEND=triton tests; }
sanitizer() (
  device || exit
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck; do
    compute-sanitizer --tool $tool --error-exitcode 1 --target-processes all "$python" -m pytest -q -m gpu \
      tests/test_kernels_gpu.py -k "small_cases and training and float32" || exit
  done
)
bench() { measure bench; }
bench_triton() { TAS_FAST_BACKEND=triton measure bench_triton; }
measure() {
  device && "$python" -m pytest -q -m gpu benchmarks --benchmark-only --benchmark-json="$out/$1.json"
  local code=$?
  [ ! -s "$out/$1.json" ] || "$python" benchmarks/table.py "$out/$1.json" >"$out/$1.md" || return
  return $code
}
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
