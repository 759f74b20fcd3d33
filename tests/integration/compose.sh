#!/usr/bin/env bash
# docker/compose.yaml on a real engine: sample in, shards out; nothing open without a password or token; killed workers
# and a stopped job change no byte of the shards. About 6 minutes; with --build (or without the images) 10 more.
# Usage: tests/integration/compose.sh [--build]      Status 77: no Docker engine here.
# KEBIOLM_BUILD_OPTIONS are options for `docker build`, such as "--network host".
set -euo pipefail
cd "$(dirname "$0")/../.."

docker info >/dev/null 2>&1 || { echo "skipped: no Docker engine answers"; exit 77; }
compose=(docker compose)
"${compose[@]}" version >/dev/null 2>&1 || compose=(docker-compose)
"${compose[@]}" version >/dev/null 2>&1 || { echo "skipped: no docker compose"; exit 77; }

# shellcheck source=tests/integration/expect.sh
source tests/integration/expect.sh

say "images"
for name in preprocessing mlflow; do
  if [ "${1:-}" = --build ] || ! docker image inspect "kebiolm-$name" >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    docker build --quiet ${KEBIOLM_BUILD_OPTIONS:-} -f "docker/$name.Dockerfile" -t "kebiolm-$name" .
  fi
done

say "settings, secrets, sample"
work=$(mktemp -d)
owner=$(id -u)
[ "$owner" != 0 ] || owner=1000
# All settings are given here, so that docker/.env of the user has no say.
export KEBIOLM_IMAGE=kebiolm-preprocessing KEBIOLM_MLFLOW_IMAGE=kebiolm-mlflow KEBIOLM_MODEL=/dev/null
export KEBIOLM_ANNOTATE_OPTIONS="" KEBIOLM_WORKER_CPUS=1
export COMPOSE_PROJECT_NAME=kebiolm-try-$$ KEBIOLM_UID=$owner KEBIOLM_GID=$owner KEBIOLM_SECRETS=$work/secrets
export KEBIOLM_INPUT=$work/sample/pubmed KEBIOLM_KB=$work/sample/umls KEBIOLM_TOKENIZER=$work/sample/tokenizer
export KEBIOLM_PACK_OPTIONS="--max-length 128 --heldout 0.1" KEBIOLM_MLFLOW_PORT=15011 KEBIOLM_WORKER_MEMORY=2g
export KEBIOLM_PREPROCESS_MEMORY=3g KEBIOLM_OUTPUT=$work/undisturbed
compose+=(-f docker/compose.yaml)
finish() {
  "${compose[@]}" down --volumes --timeout 5 >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

mkdir "$work"/{undisturbed,killed,stopped}
docker/make-secrets.sh "$work/secrets"
[ "$(id -u)" != 0 ] || chown "$owner:$owner" "$work" "$work"/{undisturbed,killed,stopped}
in_image() { docker run --rm --network none --user "$owner" -v "$work:$work" kebiolm-preprocessing "$@"; }
in_image kebiolm sample "$work/sample" --abstracts 4000

up() {
  "${compose[@]}" up -d --scale ray-worker=2 >"$work/compose.log" 2>&1 || { cat "$work/compose.log"; exit 1; }
}
container() { "${compose[@]}" ps -q "$1" | sed -n "${2:-1}p"; }
job_status() {  # waits for the job's end; what it said, where it failed
  local status
  status=$(docker wait "$(container preprocess)")
  [ "$status" = 0 ] || "${compose[@]}" logs --tail 40 preprocess >&2
  echo "$status"
}
shard_hash() { (cd "$1/shards" && sha256sum -- *.arrow entity_vocab.tsv | sha256sum | cut -c1-16); }
parts() { find "$KEBIOLM_OUTPUT/annotated" -name '*.parquet' 2>/dev/null | wc -l; }
until_under_way() {  # until some of the job's files are written; never for ever
  for _ in $(seq 600); do
    [ "$(parts)" -lt 6 ] || return 0
    [ "$(docker inspect -f '{{.State.Running}}' "$(container preprocess)")" = true ] || break
    sleep 0.2
  done
  echo "FAIL  the job was not seen under way"
  "${compose[@]}" logs --tail 50 preprocess
  exit 1
}

say "the whole job, 2 workers"
SECONDS=0
up
expect "status of the job" "$(job_status)" 0
echo "      $SECONDS s with starting"
[ $failures = 0 ]  # without shards there is nothing to compare with
in_image kebiolm shards show "$work/undisturbed/shards" --n 1
wanted=$(shard_hash "$work/undisturbed")

say "the containers that are up"
for service in ray-head ray-worker mlflow; do
  id=$(container $service)
  expect "$service: user" "$(docker exec "$id" id -u)" "$owner"
  expect "$service: capabilities" "$(docker exec "$id" grep CapEff /proc/1/status | cut -f2)" 0000000000000000
  expect "$service: no new privileges" "$(docker exec "$id" grep NoNewPrivs /proc/1/status | cut -f2)" 1
  expect "$service: root can be written" "$(docker exec "$id" sh -c 'touch /x 2>/dev/null && echo yes || echo no')" no
  expect "$service: memory limited" "$(docker inspect -f '{{gt .HostConfig.Memory 0}}' "$id")" true
  for secret in "$work"/secrets/*; do
    expect "$service: $(basename "$secret") in docker inspect" "$(docker inspect "$id" | grep -c "$(cat "$secret")")" 0
  done
done
expect "published ports" "$(docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" |
  xargs docker inspect -f '{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}}:{{.HostPort}} {{end}}{{end}}' |
  tr -d ' \n')" "127.0.0.1:$KEBIOLM_MLFLOW_PORT"
expect "network of the cluster has a way out" \
  "$(docker network inspect -f '{{not .Internal}}' "${COMPOSE_PROJECT_NAME}_cluster")" false

say "MLflow: who may ask"
for _ in $(seq 60); do
  [ "$(docker inspect -f '{{.State.Health.Status}}' "$(container mlflow)")" != healthy ] || break
  sleep 2
done
expect "health, by the API" "$(docker inspect -f '{{.State.Health.Status}}' "$(container mlflow)")" healthy
answer() {
  curl --silent --output /dev/null --write-out '%{http_code}' "$@" \
    "http://127.0.0.1:$KEBIOLM_MLFLOW_PORT/api/2.0/mlflow/experiments/search?max_results=1"
}
# The password goes by a file: an argument could be read in the list of processes.
(umask 077; echo "user = admin:$(cat "$work/secrets/mlflow_admin_password")" >"$work/curl")
expect "no password" "$(answer)" 401
expect "a wrong password" "$(answer --user admin:wrong-password-1)" 401
expect "the password, another host's name" "$(answer --config "$work/curl" --header 'Host: rebound.example')" 403
expect "the password" "$(answer --config "$work/curl")" 200

say "Ray: who may join"
od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$work/secrets/wrong_token"
[ "$(id -u)" != 0 ] || chown "$owner" "$work/secrets/wrong_token"
client() {  # client MODE SECRET: the exit status of a call to the head
  docker run --rm --network "${COMPOSE_PROJECT_NAME}_cluster" --user "$owner" -v "$work/secrets:/run/secrets:ro" \
    -e "RAY_AUTH_MODE=$1" -e "RAY_AUTH_TOKEN_PATH=/run/secrets/$2" kebiolm-preprocessing \
    sh -c 'ray health-check --address ray-head:6379 && echo accepted' 2>&1 | grep -om1 'accepted\|AuthenticationError'
}
expect "no token" "$(client disabled none)" AuthenticationError
expect "a wrong token" "$(client token wrong_token)" AuthenticationError
expect "the token" "$(client token ray_token)" accepted
expect "dashboard" "$(docker exec "$(container ray-worker)" python -c '
import socket
print("closed" if socket.socket().connect_ex(("ray-head", 8265)) else "open")')" closed

say "started again when all is done, and with other UMLS files"
up
expect "status of the job" "$(job_status)" 0
expect "shards" "$(shard_hash "$work/undisturbed")" "$wanted"
cp -r "$work/sample/umls" "$work/other_umls"
expect "other UMLS files" "$(docker run --rm --network none --user "$owner" -v "$work/other_umls:/data/kb:ro" \
  -v "$work/undisturbed:/data/output" -v "$KEBIOLM_INPUT:/data/input:ro" -v "$KEBIOLM_TOKENIZER:/data/tokenizer:ro" \
  kebiolm-preprocessing preprocess.sh 2>&1 | grep -o '^error: KEBIOLM_KB: got other UMLS files')" \
  "error: KEBIOLM_KB: got other UMLS files"

say "in the middle both workers are killed: the processes of one, which comes back, and the other for good"
export KEBIOLM_OUTPUT=$work/killed
up
first=$(container ray-worker 1) second=$(container ray-worker 2)
until_under_way
docker exec "$first" sh -c 'kill -KILL -1' || true
docker kill "$second" >/dev/null
echo "      killed with $(parts) files written"
expect "status of the job" "$(job_status)" 0
expect "restarts" "$(docker inspect -f '{{.RestartCount}}' "$first" "$second" | paste -sd ' ')" "1 0"
expect "shards" "$(shard_hash "$work/killed")" "$wanted"

say "the job is stopped in the middle and started again"
export KEBIOLM_OUTPUT=$work/stopped
up
job=$(container preprocess)
until_under_way
SECONDS=0
"${compose[@]}" stop >/dev/null 2>&1
expect "all stopped within 30 s ($SECONDS s)" "$((SECONDS <= 30))" 1
expect "the job ended well" "$([ "$(docker inspect -f '{{.State.ExitCode}}' "$job")" = 0 ] && echo yes || echo no)" no
expect "shards are there already" "$([ -e "$work/stopped/shards" ] && echo yes || echo no)" no
up
expect "status of the job" "$(job_status)" 0
expect "shards" "$(shard_hash "$work/stopped")" "$wanted"

say "$([ $failures = 0 ] && echo "all as expected" || echo "$failures failures")"
[ $failures = 0 ]
