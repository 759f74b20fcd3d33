#!/usr/bin/env bash
# Makes the secrets that docker/compose.yaml mounts as files: Ray's token, MLflow's admin password and session key.
# Usage: docker/make-secrets.sh [FOLDER]     (default: docker/secrets; secrets that are there stay as they are)
set -euo pipefail
umask 077
folder=${1:-$(dirname "$0")/secrets}
owner=${KEBIOLM_UID:-1000}

mkdir -p "$folder"
for name in ray_token mlflow_admin_password mlflow_secret_key; do
  [ -s "$folder/$name" ] && continue
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$folder/$name"
done
# The containers run as this user, not as root, and must be able to read them.
if [ "$(id -u)" = 0 ]; then
  chown -R "$owner" "$folder"
elif [ "$(id -u)" != "$owner" ]; then
  echo "set KEBIOLM_UID=$(id -u) and KEBIOLM_GID=$(id -g) in docker/.env: only you can read the secrets"
fi
echo "$folder: secrets, for user $(stat -c %u "$folder") only"
