# One image for training nodes: TransE, pretraining with DeepSpeed, export. No spaCy, no Ray.
# Build from the repository's root:   docker build -f docker/train.Dockerfile -t kebiolm-train .
# The default torch, built for CUDA 12.6, runs on V100 (compute capability 7.0) to H200; builds for newer CUDA leave V100
# out. For optimizer offload to the CPU, which DeepSpeed compiles at run time, choose a base with nvcc, of torch's CUDA:
#   --build-arg BASE_IMAGE=nvidia/cuda:12.6.3-devel-ubuntu24.04
# Without a GPU:
#   --build-arg BASE_IMAGE=python:3.11-slim-bookworm --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A base needs Python 3.11 or 3.12: constraints.txt has versions that no longer run on 3.10, which Ubuntu 22.04 brings.
ARG BASE_IMAGE=nvidia/cuda:12.6.3-runtime-ubuntu24.04

FROM ${BASE_IMAGE} AS base
# g++ and Python's headers: Triton and the operator for CPUs compile at run time. pdsh, ssh: DeepSpeed's launcher.
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    g++ openssh-client pdsh python3 python3-dev python3-venv >/dev/null \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
RUN python3 -m venv /opt/kebiolm
ENV PATH=/opt/kebiolm/bin:$PATH
WORKDIR /src
# Packages first, in a layer of their own that a change of the code leaves as it is. DeepSpeed comes as source only; its
# operators are built where they run (DS_BUILD_OPS=0).
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "${TORCH}"
COPY LICENSE constraints.txt pyproject.toml ./
COPY kebiolm/__init__.py kebiolm/
RUN touch README.md \
 && DS_BUILD_OPS=0 pip install --no-cache-dir --prefer-binary -c constraints.txt "${TORCH}" ninja '.[train]' \
 && pip uninstall --yes --quiet kebiolm \
 && find /opt/kebiolm -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune -exec rm -rf {} + \
 && rm -rf /opt/kebiolm/lib/python3*/site-packages/pyarrow/include
COPY kebiolm kebiolm
COPY preprocessing preprocessing
RUN rm -rf build *.egg-info && pip install --no-cache-dir --no-deps . && kebiolm --version

FROM base
# ssh wants its user to have a name.
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /bin/bash kebiolm
COPY --from=build /opt/kebiolm /opt/kebiolm
COPY launch /workspace/launch
COPY deepspeed_configs /workspace/deepspeed_configs
# All that is written outside of the mounted folders goes to /tmp: on a read-only root, make it a tmpfs with `exec`, since
# compiled operators are loaded from there.
ENV PATH=/opt/kebiolm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=kebiolm HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_NO_ADVISORY_WARNINGS=1 \
    MLFLOW_DISABLE_TELEMETRY=true
# Recipes name deepspeed_configs/... from here.
WORKDIR /workspace
USER 10001:10001
CMD ["kebiolm", "--help"]
