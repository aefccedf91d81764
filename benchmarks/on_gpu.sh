#!/bin/sh
# Every check that needs a GPU, in under 8 minutes on one of the H100 class; one JSON.
#
#   benchmarks/on_gpu.sh [--tiny] [OUT.json] [options of `python -m sinkscope.benchmarks gpu`]
#
# --tiny   the same on a CPU with tiny shapes, to test that it runs to the end
#
# PYTHON is the interpreter (default: python). Needs torch, transformers and the other requirements;
# nothing is downloaded. The folder of the real size (7.5 GB) is made in TMPDIR and removed.
set -eu
cd "$(dirname "$0")/.."
plan=full device=cuda size=3b
if [ "${1:-}" = "--tiny" ]; then
    plan=tiny device=cpu size=tiny
    shift
fi
out=outputs/gpu.json
case "${1:-}" in
    "" | -*) ;;
    *) out=$1; shift ;;
esac
mkdir -p "$(dirname "$out")"
python=${PYTHON:-python}
PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
HF_HUB_OFFLINE=1
export PYTHONPATH HF_HUB_OFFLINE
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT INT TERM
"$python" -m tests.checkpoints.real_size "$room/model" --size "$size" --device "$device"
"$python" -m sinkscope.benchmarks gpu --plan "$plan" --device "$device" --folder "$room/model" \
    --output "$out" "$@"
echo "written: $out"
