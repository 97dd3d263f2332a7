#!/bin/bash
# demo.sh BUILD - the whole path on the bundled model: a private alignd, a QLoRA DPO
# job on two CPU ranks watched live, the result, and how to load the adapter.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1
began=$SECONDS
tests/setup/build.sh "$build" -- client/alignctl daemon/alignd worker/align-worker \
  kernels/kn_ref.so kernels/kn_cpu.so # what the demo runs: the rest takes minutes more
built=$SECONDS

mkdir -p "$build/demo"
run=$PWD/$build/demo/run-$(date +%Y%m%d-%H%M%S)
export ALIGND_STATE
ALIGND_STATE=$(mktemp -d /tmp/alignd-demo.XXXXXX)
alignctl=$build/client/alignctl
stop() {
  "$alignctl" down >/dev/null 2>&1 || true
  rm -rf "$ALIGND_STATE"
}
trap stop EXIT

echo "== alignctl up"
"$alignctl" up --cpu-slots 2
echo "== alignctl submit tests/data/demo/job.yaml --watch"
"$alignctl" submit tests/data/demo/job.yaml --set "output_dir=$run" --watch
"$alignctl" wait 1 >/dev/null
echo "== alignctl show 1"
"$alignctl" show 1
python3 - "$run" <<'PY'
import json, sys
run = sys.argv[1]
rows = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
first = next(r for r in rows if "loss" in r)
evals = [r for r in rows if "eval_loss" in r]
print("\n  step   eval_loss   eval_rewards/accuracies   eval_rewards/margins")
for r in evals:
    print(f"  {r['global_step']:4d}   {r['eval_loss']:9.4f}   {r['eval_rewards/accuracies']:23.3f}"
          f"   {r['eval_rewards/margins']:20.3f}")
print(f"\n  loss at step 1: {first['loss']:.4f} (ln 2 = 0.6931); chance accuracy is 0.5")
print(f"\nThe adapter lies in {run}\nLoad it with")
print("  from transformers import AutoModelForCausalLM; from peft import PeftModel")
print("  base = AutoModelForCausalLM.from_pretrained('tests/data/demo')")
print(f"  model = PeftModel.from_pretrained(base, '{run}')")
PY
echo
echo "demo: $((SECONDS - built)) s, building before it $((built - began)) s"
