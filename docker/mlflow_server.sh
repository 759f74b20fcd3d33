#!/bin/sh
# Start MLflow with passwords. Secrets are read from files here, so that no `docker inspect` shows them.
set -eu
umask 077
MLFLOW_AUTH_CONFIG_PATH=/opt/mlflow/bin/basic_auth.ini
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat /run/secrets/mlflow_admin_password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat /run/secrets/mlflow_secret_key)
export MLFLOW_AUTH_CONFIG_PATH MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1 \
  --backend-store-uri sqlite:////mlflow/mlflow.db --artifacts-destination /mlflow/artifacts
