#!/usr/bin/env bash
# Pretrain on this machine, or with a hostfile on several, by DeepSpeed's launcher (pdsh).
#
#   launch/pretrain.sh [--hostfile FILE] RECIPE.yaml [section.key=value ...] [-- DEEPSPEED OPTIONS ...]
#
#   launch/pretrain.sh launch/configs/pretrain/paper_v100.yaml -- --num_gpus 8
#   launch/pretrain.sh --hostfile launch/hostfile launch/configs/pretrain/paper_v100.yaml
#
# Hosts must agree in code, packages, shards and settings and share the output folder; that is checked first. Every host
# of the hostfile takes part: comment out those that shall not.
# Variables for all processes, on one machine too: ~/.deepspeed_env and ./.deepspeed_env, or the file that DS_ENV_FILE
# names (see launch/deepspeed_env.example).
# SIGTERM, SIGUSR1, SIGHUP or Ctrl-C: a checkpoint is saved after the step under way, and the status is 75; the same
# command goes on from there. After KEBIOLM_STOP_GRACE_S seconds (600), or at a second Ctrl-C, the job is killed.
# Status: 0 finished, 75 stopped, 2 a mistake to mend, else a failure; then too the same command resumes.
set -euo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}
usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

hostfile=() training=() launcher=()
while [ $# -gt 0 ]; do
  case "$1" in
  -h | --help) usage; exit 0 ;;
  --hostfile)
    [ $# -ge 2 ] || refuse "--hostfile: got nothing; expected a file; see launch/hostfile.example"
    hostfile=(--hostfile "$2")
    shift 2 ;;
  --) shift; launcher=("$@"); break ;;
  -*) refuse "$1: got an unknown option; expected options of deepspeed after --; see launch/pretrain.sh --help" ;;
  *) training+=("$1"); shift ;;
  esac
done
[ ${#training[@]} -gt 0 ] || refuse "recipe: got none; expected a YAML file; see launch/pretrain.sh --help"
for command in deepspeed python; do
  command -v $command >/dev/null ||
    refuse "$command: got no such command; expected KeBioLM's environment; do: source .venv/bin/activate"
done

# A request to stop that is made here is for this launch alone, not for another job at work on the same folder.
KEBIOLM_LAUNCH=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
export KEBIOLM_LAUNCH
# DeepSpeed itself hands these files to the hosts only where there are several, and takes no comments or empty lines.
environment=$(mktemp)
trap 'rm -f "$environment"' EXIT
for name in DS_ACCELERATOR DEEPSPEED_TIMEOUT OMP_NUM_THREADS TORCH_EXTENSIONS_DIR TOKENIZERS_PARALLELISM \
  HF_HUB_OFFLINE GLOO_SOCKET_IFNAME KEBIOLM_CACHE KEBIOLM_KNN_BACKEND KEBIOLM_LAUNCH; do
  [ -z "${!name+set}" ] || echo "$name=${!name}" >>"$environment"
done
files=("$HOME/.deepspeed_env" ./.deepspeed_env)
if [ -n "${DS_ENV_FILE:-}" ]; then
  [ -r "$DS_ENV_FILE" ] || refuse "DS_ENV_FILE: got $DS_ENV_FILE; expected a file that can be read; correct the path"
  files=("$DS_ENV_FILE")
fi
for file in "${files[@]}"; do
  [ -f "$file" ] || continue
  while IFS= read -r line || [ -n "$line" ]; do
    [[ ! $line =~ ^[[:space:]]*(#.*)?$ ]] || continue
    [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || refuse "$file: got '$line'; expected NAME=value; correct the line"
    export "${line?}"
    echo "$line" >>"$environment"
  done <"$file"
done
export DS_ENV_FILE=$environment

checked=$(python -m kebiolm.training.launch_check "${hostfile[@]}" "${training[@]}")
{ read -r run_file; read -r stop_file; } <<<"$checked"
stop_file=$stop_file.$KEBIOLM_LAUNCH

if [ ${#hostfile[@]} -gt 0 ]; then
  # Without --force_multi a hostfile of one host would start here, whatever host it names.
  launcher=("${hostfile[@]}" --force_multi "${launcher[@]}")
  # An ssh to a host that is gone would wait for hours.
  alive='-o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4'
  export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} $alive"
fi

asked_at='' kill_now='' killed=''
# shellcheck disable=SC2317  # called by the traps
ask() {
  if [ -z "$asked_at" ]; then
    asked_at=$SECONDS
    echo "SIG$1: the job saves a checkpoint after the step under way and ends; Ctrl-C kills it" >&2
  elif [ "$1" = INT ]; then
    kill_now=yes
  fi
}
trap 'ask TERM' TERM
trap 'ask INT' INT
trap 'ask USR1' USR1
trap 'ask HUP' HUP

# In a session of its own: DeepSpeed's launcher answers a signal by killing, and Ctrl-C would reach it too.
setsid deepspeed --log_level error "${launcher[@]}" --module kebiolm.training.pretrain "${training[@]}" &
job=$!

end_job() {
  killed=yes
  echo "the job is killed; started again it goes on from its last checkpoint" >&2
  kill -TERM -- "-$job" 2>/dev/null || true
  for _ in $(seq 45); do  # DeepSpeed's launcher gives its processes 30 s
    kill -0 -- "-$job" 2>/dev/null || return 0
    sleep 1 || true
  done
  kill -KILL -- "-$job" 2>/dev/null || true
}

while kill -0 "$job" 2>/dev/null; do
  sleep 1 || true
  [ -n "$asked_at" ] || continue
  # Not before the job has made its folder.
  [ ! -e "$run_file" ] || touch "$stop_file"
  if [ -n "$kill_now" ] || [ $((SECONDS - asked_at)) -ge "${KEBIOLM_STOP_GRACE_S:-600}" ]; then
    end_job
  fi
done
status=0
wait "$job" || status=$?
[ -z "$asked_at" ] || rm -f "$stop_file"
case $status in
0 | 2 | 75) ;;
*)
  [ -n "$killed" ] ||
    echo "failed with status $status: see the first error above; the same command resumes from a checkpoint" >&2 ;;
esac
exit "$status"
