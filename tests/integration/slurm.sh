#!/usr/bin/env bash
# launch/pretrain.slurm on a real Slurm of one node, on the CPU: a job that is asked to stop saves, goes back into the
# queue, resumes and ends with the losses of an undisturbed one; a mistake ends a job without a second try. 4 minutes
# on 2 cores. Needs root, Debian's slurmctld, slurmd and slurm-client, and KeBioLM's environment on PATH.
# Usage: SHARDS=DIR tests/integration/slurm.sh      (DIR: packed shards)     Status 77: no Slurm here.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$(id -u)" != 0 ] || [ "$(type -t slurmctld slurmd sbatch | wc -l)" != 3 ]; then
  echo "skipped: no Slurm, or not root"
  exit 77
fi
[ -n "${SHARDS:-}" ] || { echo "skipped: SHARDS names no packed shards"; exit 77; }

# shellcheck source=tests/integration/expect.sh
source tests/integration/expect.sh

work=$(mktemp -d)
finish() {
  for name in slurmd slurmctld; do
    [ ! -e "$work/$name.pid" ] || kill "$(cat "$work/$name.pid")" || true
  done
  sleep 2
  rm -rf "$work"
}
trap finish EXIT

export SLURM_CONF=$work/slurm.conf DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 PYTHONPATH=$PWD
host=$(hostname -s)
mkdir "$work"/{state,spool}
cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld && sleep 2 && slurmd && sleep 2

submit() {  # submit NAME [SETTINGS ...]: the job's number
  sbatch --parsable --nodes=1 --ntasks-per-node=2 --gres=none --cpus-per-task=1 --time=30 --output="$work/$1.out" \
    launch/pretrain.slurm launch/configs/pretrain/debug.yaml deepspeed=deepspeed_configs/zero2_fp32.json \
    "shards=$SHARDS" "output=$work/$1" "tracking.tracking_uri=sqlite:///$work/mlflow.db" \
    optimization.max_steps=40 optimization.global_batch_size=16 "${@:2}"
}
state() { scontrol show job "$1" | grep -o "$2=[^ ]*" | head -n 1 | cut -d= -f2; }
until_state() {  # until_state JOB STATES: never for ever
  for _ in $(seq 600); do
    [[ " $2 " != *" $(state "$1" JobState) "* ]] || return 0
    sleep 0.5
  done
  echo "FAIL  job $1 stays $(state "$1" JobState)"
  cat "$work"/*.out
  exit 1
}
losses() { python -c '
import json, sys
records = map(json.loads, open(sys.argv[1], encoding="utf-8"))
print([(r["step"], r["metrics"]["loss"]) for r in records if r["kind"] == "train"])' "$work/$1/metrics.jsonl"; }

job=$(submit undisturbed)
until_state "$job" "COMPLETED FAILED"
expect "undisturbed" "$(state "$job" JobState)" COMPLETED

job=$(submit stopped)
for _ in $(seq 1500); do
  [ ! -e "$work/stopped/metrics.jsonl" ] || [ "$(wc -l <"$work/stopped/metrics.jsonl")" -lt 10 ] || break
  sleep 0.2
done
scancel --signal=TERM "$job"
until_state "$job" "PENDING COMPLETED FAILED"
expect "after SIGTERM" "$(state "$job" JobState)" PENDING
expect "said so" "$(grep -c 'stopped by SIGTERM' "$work/stopped.out")" 1
for _ in $(seq 60); do  # Slurm lets a requeued job wait for two minutes
  scontrol update "jobid=$job" starttime=now 2>/dev/null && break
  sleep 1
done
until_state "$job" "COMPLETED FAILED"
expect "second start" "$(state "$job" JobState)" COMPLETED
expect "restarts" "$(state "$job" Restarts)" 1
expect "resumed" "$(grep -c 'resuming after step' "$work/stopped.out")" 1
expect "losses as undisturbed" "$([ "$(losses stopped)" = "$(losses undisturbed)" ] && echo equal || echo differ)" equal

job=$(submit mistake optimization.max_stepz=4)
until_state "$job" "COMPLETED FAILED"
expect "a mistake" "$(state "$job" JobState)" FAILED
expect "its restarts" "$(state "$job" Restarts)" 0

echo "$failures failures"
[ $failures = 0 ] || tail -n 30 "$work"/*.out
[ $failures = 0 ]
