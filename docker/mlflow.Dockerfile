# MLflow's tracking server with passwords (its `auth` extra). Build from the repository's root:
#   docker build -f docker/mlflow.Dockerfile -t kebiolm-mlflow .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv /opt/mlflow
COPY constraints.txt .
RUN /opt/mlflow/bin/pip install --no-cache-dir --only-binary :all: -c constraints.txt 'mlflow[auth]' \
 && find /opt/mlflow -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune -exec rm -rf {} + \
 && rm -rf /opt/mlflow/lib/python3*/site-packages/pyarrow/include

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/mlflow /opt/mlflow
COPY docker/mlflow_server.sh docker/mlflow_ready.py docker/basic_auth.ini /opt/mlflow/bin/
# Any user of compose.yaml can write to the volume, whose folder begins as a copy of this one.
RUN mkdir -m 1777 /mlflow
ENV PATH=/opt/mlflow/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /mlflow
USER 10001:10001
CMD ["mlflow_server.sh"]
