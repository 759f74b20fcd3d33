#!/usr/bin/env bash
# docker/train.Dockerfile on a real engine, on the CPU: who it runs as, what is in it, and training in it on a read-only
# root, in one process, in two, and stopped. About 4 minutes on 2 cores; with --build (or without the image) 6 more.
# Usage: tests/integration/train_image.sh [--build]      Status 77: no Docker engine here.
# KEBIOLM_BUILD_OPTIONS are options for `docker build`: for a base without CUDA see docker/train.Dockerfile.
# SHARDS=DIR takes packed shards that are there, in place of the sample's, which KeBioLM's environment on PATH makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
docker info >/dev/null 2>&1 || { echo "skipped: no Docker engine answers"; exit 77; }

# shellcheck source=tests/integration/expect.sh
source tests/integration/expect.sh

image=kebiolm-train container=kebiolm-train-try-$$
if [ "${1:-}" = --build ] || ! docker image inspect $image >/dev/null 2>&1; then
  say "image"
  # shellcheck disable=SC2086
  docker build --quiet ${KEBIOLM_BUILD_OPTIONS:-} -f docker/train.Dockerfile -t $image .
fi

work=$(mktemp -d)
finish() {
  docker rm --force "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT
chmod 755 "$work"
mkdir -m 1777 "$work/runs"

shards=${SHARDS:-$work/shards}
if [ -z "${SHARDS:-}" ]; then
  say "sample"
  kebiolm sample "$work/sample" --abstracts 100 >/dev/null
  kebiolm kb build --umls "$work/sample/umls" --out "$work/kb" >/dev/null
  kebiolm annotate "$work/sample/pubmed" --kb "$work/kb" --model dictionary --out "$work/annotated" \
    --workers 1 >/dev/null
  kebiolm pack "$work/annotated" --kb "$work/kb" --tokenizer "$work/sample/tokenizer" --out "$shards" \
    --max-length 128 --heldout 0.1 >/dev/null
fi

# A read-only root, no capabilities, no network but the loopback.
options=(--name "$container" --read-only --tmpfs "/tmp:exec,mode=1777" --cap-drop ALL --security-opt no-new-privileges
  --network none --shm-size 1g -e DS_ACCELERATOR=cpu -e OMP_NUM_THREADS=1
  -v "$(realpath "$shards"):/data/shards:ro" -v "$work/runs:/data/runs")
in_image() { docker run --rm "${options[@]}" $image "$@"; }
recipe=(launch/configs/pretrain/debug.yaml deepspeed=deepspeed_configs/zero2_fp32.json shards=/data/shards
  tracking.tracking_uri=sqlite:////tmp/mlflow.db evaluation.every_steps=4)
train() {  # train NAME COMMAND...: its status, and what it said where that is not 0
  local status=0
  in_image "${@:2}" >"$work/$1.log" 2>&1 || status=$?
  [ $status = 0 ] || tail -n 30 "$work/$1.log" >&2
  echo $status
}
records() { if [ -e "$work/runs/$1/metrics.jsonl" ]; then wc -l <"$work/runs/$1/metrics.jsonl"; else echo 0; fi; }

say "the image"
expect "user" "$(in_image id -u)" 10001
expect "capabilities" "$(in_image grep CapEff /proc/1/status | cut -f2)" 0000000000000000
expect "root can be written" "$(in_image sh -c 'touch /workspace/x 2>/dev/null && echo yes || echo no')" no
expect "commands" "$(in_image bash -c 'type -t deepspeed kebiolm pdsh ssh g++ ninja' | wc -l)" 6
expect "packages of preprocessing" "$(in_image pip list 2>/dev/null | grep -ciE '^(ray|spacy|scispacy) ' || true)" 0
in_image python -c 'import torch; print("      torch", torch.__version__, "CUDA", torch.version.cuda)'

say "4 steps"
expect "one process: status" "$(train one kebiolm pretrain "${recipe[@]}" output=/data/runs/one \
  optimization.max_steps=4)" 0
expect "two processes: status" "$(train two launch/pretrain.sh "${recipe[@]}" output=/data/runs/two \
  optimization.max_steps=4 -- --num_gpus 2)" 0
expect "checkpoints" "$(find "$work/runs" -name 'mp_rank_00_model_states.pt' | wc -l)" 2
expect "owner of the checkpoints" "$(stat -c %u "$work/runs/two/checkpoints")" 10001
expect "records of figures are equal in number" "$(records one)" "$(records two)"

say "docker stop in the middle"
docker run --detach "${options[@]}" $image launch/pretrain.sh "${recipe[@]}" output=/data/runs/stopped \
  optimization.max_steps=100000 -- --num_gpus 2 >/dev/null
for _ in $(seq 600); do
  [ "$(records stopped)" -lt 5 ] || break
  sleep 0.2
done
SECONDS=0
docker stop --time 120 "$container" >/dev/null
expect "status" "$(docker inspect -f '{{.State.ExitCode}}' "$container")" 75
echo "      stopped in $SECONDS s: $(docker logs "$container" 2>&1 | grep -o 'stopped by .*saved')"

say "$([ $failures = 0 ] && echo "all as expected" || echo "$failures failures")"
[ $failures = 0 ]
