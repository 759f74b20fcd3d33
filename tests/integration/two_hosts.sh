#!/usr/bin/env bash
# Pretraining on two hosts by launch/pretrain.sh (deepspeed --hostfile, pdsh): the losses of one host with two
# processes, a stop asked for, a network cable that is cut. About 6 minutes on 2 cores. Needs KeBioLM's environment on
# PATH.
# Usage: tests/integration/two_hosts.sh HOST_MAKER     (or TWO_HOSTS=HOST_MAKER)
#          a script that makes node1 and node2 here: up, down, run NODE COMMAND, cut NODE, mend NODE; where a bridge joins
#          them, a Docker engine's rules, even one that has ended, drop what goes over it: iptables -P FORWARD ACCEPT
#        HOSTFILE=FILE WORK=DIR tests/integration/two_hosts.sh
#          two hosts of your own, one slot each; all see DIR; no cable is cut
# SHARDS=DIR takes packed shards that are there, in place of the sample's. Status 77: nothing to run on.
set -euo pipefail
maker=${1:-${TWO_HOSTS:-}} hostfile=${HOSTFILE:-}
[ -z "$maker" ] || maker=$(realpath "$maker")
[ -z "$hostfile" ] || hostfile=$(realpath "$hostfile")
cd "$(dirname "$0")/../.."
[ -n "$maker$hostfile" ] || { echo "skipped: neither a host maker nor HOSTFILE given"; exit 77; }
[ -z "$maker" ] || [ "$(id -u)" = 0 ] || { echo "skipped: hosts are made as root only"; exit 77; }

# shellcheck source=tests/integration/expect.sh
source tests/integration/expect.sh

made='' work=$(mktemp -d "${WORK:-/tmp}/two_hosts.XXXXXX")
finish() {
  [ -z "$made" ] || "$maker" down
  rm -rf "$work"
}
trap finish EXIT
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 DEEPSPEED_TIMEOUT=1

on_first_host=()
if [ -n "$maker" ]; then
  "$maker" up
  made=yes
  on_first_host=("$maker" run node1)
  printf 'node1 slots=1\nnode2 slots=1\n' >"$work/hostfile"
  hostfile=$work/hostfile
fi

shards=${SHARDS:-$work/shards}
if [ -z "${SHARDS:-}" ]; then
  say "sample"
  kebiolm sample "$work/sample" --abstracts 100
  kebiolm kb build --umls "$work/sample/umls" --out "$work/kb" >/dev/null
  kebiolm annotate "$work/sample/pubmed" --kb "$work/kb" --model dictionary --out "$work/annotated" \
    --workers 1 >/dev/null
  kebiolm pack "$work/annotated" --kb "$work/kb" --tokenizer "$work/sample/tokenizer" --out "$shards" \
    --max-length 128 --heldout 0.1 >/dev/null
fi

recipe=(launch/configs/pretrain/debug.yaml deepspeed=deepspeed_configs/zero2_fp32.json "shards=$shards"
  optimization.max_steps=40 optimization.global_batch_size=16 checkpoints.every_steps=5
  "tracking.tracking_uri=sqlite:///$work/mlflow.db")
start() {  # start NAME: on both hosts, in the background; its number is in $job
  "${on_first_host[@]}" launch/pretrain.sh --hostfile "$hostfile" "${recipe[@]}" "output=$work/$1" \
    >>"$work/$1.log" 2>&1 &
  job=$!
}
ended() {  # waits for $job; its status, in $status, and what it said where that is not $1
  status=0
  wait "$job" || status=$?
  [ "$status" = "$1" ] || tail -n 40 "$work/$2.log" >&2
}
until_step() {  # until so many records are written, never for ever
  for _ in $(seq 600); do
    [ ! -e "$work/$1/metrics.jsonl" ] || [ "$(wc -l <"$work/$1/metrics.jsonl")" -lt "$2" ] || return 0
    kill -0 "$job" 2>/dev/null || break
    sleep 0.2
  done
  tail -n 40 "$work/$1.log"
  echo "FAIL  $1 was not seen under way"
  exit 1
}
# "N losses, largest difference D" of two runs, over all losses and figures of training and evaluation.
compare() {
  python - "$work/$1/metrics.jsonl" "$work/$2/metrics.jsonl" <<'PYTHON'
import json
import sys


def figures(path):
    found = {}
    for record in map(json.loads, open(path, encoding="utf-8")):
        for name, value in record["metrics"].items():
            if name.startswith("loss") and record["kind"] in ("train", "heldout"):
                key = record["kind"], record["step"], name
                assert key not in found, f"{key} twice in {path}"
                found[key] = value
    return found


one, other = map(figures, sys.argv[1:])
assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())[:5]
print(f"{len(one)} losses, largest difference {max(abs(one[key] - other[key]) for key in one):g}")
PYTHON
}

say "one host, two processes"
port=$(python -c 'import socket; probe = socket.socket(); probe.bind(("", 0)); print(probe.getsockname()[1])')
launch/pretrain.sh "${recipe[@]}" "output=$work/one_host" -- --num_gpus 2 --master_port "$port" \
  >"$work/one_host.log" 2>&1 || { cat "$work/one_host.log"; exit 1; }
wanted=$(compare one_host one_host)

say "two hosts"
SECONDS=0
start two_hosts
ended 0 two_hosts
expect "status" "$status" 0
echo "      $SECONDS s with the checks"
grep -h 'agree in\|_SOCKET_IFNAME' "$work/two_hosts.log" || true
expect "against one host" "$(compare one_host two_hosts)" "$wanted"

say "SIGTERM to launch/pretrain.sh in the middle, then the same command again"
start stopped
until_step stopped 10
SECONDS=0
kill -TERM "$job"
ended 75 stopped
expect "status" "$status" 75
echo "      stopped in $SECONDS s after $(wc -l <"$work/stopped/metrics.jsonl") records"
start stopped
ended 0 stopped
expect "status of the second start" "$status" 0
expect "against one host, undisturbed" "$(compare one_host stopped)" "$wanted"

if [ -n "$maker" ]; then
  say "the cable of node2 is cut in the middle; DEEPSPEED_TIMEOUT is 1 minute"
  start cut
  until_step cut 10
  SECONDS=0
  "$maker" cut node2
  ended 255 cut
  took=$SECONDS
  expect "the job failed" "$([ "$status" = 0 ] || [ "$status" = 75 ] && echo no || echo yes)" yes
  expect "within 2 minutes ($took s)" "$((took <= 120))" 1
  grep -h 'lost contact' "$work/cut.log" || true
  expect "lines that say so on node1" "$(grep -c 'node1: error: .*lost contact' "$work/cut.log")" 1
  expect "tracebacks" "$(grep -c Traceback "$work/cut.log")" 0
  for _ in $(seq 60); do
    pgrep -f "output=$work/cut" >/dev/null || break
    sleep 1
  done
  expect "processes left" "$(pgrep -f "output=$work/cut" | wc -l)" 0
  start cut
  ended 2 cut
  expect "status of a start with the cable still cut" "$status" 2
  tail -n 1 "$work/cut.log"
  "$maker" mend node2
  start cut
  ended 0 cut
  expect "status after mending" "$status" 0
  expect "against one host, undisturbed" "$(compare one_host cut)" "$wanted"
fi

say "$([ $failures = 0 ] && echo "all as expected" || echo "$failures failures")"
[ $failures = 0 ]
