#!/usr/bin/env bash
# What the service `preprocess` does: abstracts and UMLS files in, shards out, annotated and packed on the Ray cluster.
# Reads /data/input, /data/kb, /data/tokenizer, /data/model; writes /data/output/{kb,annotated,shards}. Started again,
# it goes on where it stopped. Its exit status is that of the step that failed.
set -euo pipefail
out=/data/output kb=/data/kb model=/data/model
read -ra annotate_options <<<"${KEBIOLM_ANNOTATE_OPTIONS:-}"
read -ra pack_options <<<"${KEBIOLM_PACK_OPTIONS:-}"

# Run one command to its end. A stop of the container is passed on to it, because bash itself would let it wait.
step() {
  local status=0
  printf '\n== %s\n' "$1"
  shift
  "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do  # the first wait ended with the signal, not with the child
    status=0
    wait "$child" || status=$?
  done
  trap - TERM INT
  [ "$status" = 0 ] || exit "$status"
}

refuse() {
  echo "error: $1" >&2
  exit 2
}

# Names, sizes and times of what the knowledge base is built from.
source_files() { find -L "$kb" -maxdepth 1 -type f -printf '%f %s %T@\n' | sort; }

# Docker makes a folder that is missing, empty and owned by root.
for folder in input kb tokenizer; do
  [ -n "$(ls -A "/data/$folder" 2>/dev/null)" ] ||
    refuse "KEBIOLM_${folder^^}: got a folder that is missing, empty or closed to user $(id -u); give its full path"
done
[ -w "$out" ] ||
  refuse "KEBIOLM_OUTPUT: got a folder that user $(id -u) cannot write; make one that is yours, or set KEBIOLM_UID"
if [ -c "$model" ]; then  # /dev/null: none was given
  model=dictionary
elif [ ! -d "$model" ]; then
  refuse "KEBIOLM_MODEL: got a file; give the folder of a spaCy pipeline, or leave it empty for the dictionary"
fi

if [ ! -e "$kb/manifest.json" ]; then
  if [ ! -e "$out/kb" ]; then
    source_files >"$out/kb.source"
    step "knowledge base" kebiolm kb build --umls "$kb" --out "$out/kb"
  elif ! source_files | cmp -s - "$out/kb.source"; then
    refuse "KEBIOLM_KB: got other UMLS files than those of $out/kb; remove $out or choose another KEBIOLM_OUTPUT"
  fi
  kb=$out/kb
fi

# A driver must be on a node of its cluster; this one does no work.
ray start --address="$KEBIOLM_RAY_HEAD" --num-cpus=0 --object-store-memory=100000000 >/dev/null

# As many workers as the cluster has CPUs now: a container that was lost since the last step is not counted, and where
# none is left, one may be coming back.
count_workers() {
  local cpus
  for _ in $(seq 60); do
    cpus=$(ray_ready.py)
    [ "$cpus" = 0 ] || break
    sleep 5
  done
  echo "$cpus"
}

workers=$(count_workers)
step "annotation" kebiolm annotate /data/input --kb "$kb" --model "$model" --out "$out/annotated" \
  --workers "$workers" --ray-address "$KEBIOLM_RAY_HEAD" "${annotate_options[@]}"
workers=$(count_workers)
step "shards" kebiolm pack "$out/annotated" --kb "$kb" --tokenizer /data/tokenizer --out "$out/shards" \
  --workers "$workers" --ray-address "$KEBIOLM_RAY_HEAD" "${pack_options[@]}"
