# One image for preprocessing: knowledge base, annotation (Ray head, Ray workers, driver) and packing. No torch.
# Build from the repository's root:   docker build -f docker/preprocessing.Dockerfile -t kebiolm-preprocessing .
# For a build that can be repeated, name the base by digest: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv /opt/kebiolm
ENV PATH=/opt/kebiolm/bin:$PATH
WORKDIR /src
# Packages first, in a layer of their own that a change of the code leaves as it is. Wheels only: no compiler is needed.
COPY LICENSE constraints.txt pyproject.toml ./
COPY kebiolm/__init__.py kebiolm/
RUN touch README.md \
 && pip install --no-cache-dir --only-binary :all: -c constraints.txt '.[prep]' \
 && pip uninstall --yes --quiet kebiolm
COPY kebiolm kebiolm
COPY preprocessing preprocessing
RUN rm -rf build *.egg-info && pip install --no-cache-dir --no-deps . \
 && find /opt/kebiolm -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune -exec rm -rf {} + \
 && rm -rf /opt/kebiolm/lib/python3*/site-packages/pyarrow/include
# The whole job once, on the built-in sample: an image that cannot do it is not made. What numba compiles stays.
RUN export NUMBA_CACHE_DIR=/opt/kebiolm/numba RAY_AUTH_MODE=disabled && mkdir "$NUMBA_CACHE_DIR" && cd / \
 && kebiolm sample /tmp/try/sample \
 && kebiolm kb build --umls /tmp/try/sample/umls --out /tmp/try/kb \
 && kebiolm annotate /tmp/try/sample/pubmed --kb /tmp/try/kb --model dictionary --out /tmp/try/annotated \
 && kebiolm pack /tmp/try/annotated --kb /tmp/try/kb --tokenizer /tmp/try/sample/tokenizer --out /tmp/try/shards \
 && rm -rf /tmp/try /tmp/ray && chmod -R a+rX "$NUMBA_CACHE_DIR"

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/kebiolm /opt/kebiolm
COPY docker/entrypoint.sh docker/preprocess.sh docker/ray_ready.py /opt/kebiolm/bin/
# All that is written outside of the mounted folders goes to /tmp, which compose.yaml makes a tmpfs on a read-only root.
# USER is a name for Ray, where the user's number has none.
ENV PATH=/opt/kebiolm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=kebiolm NUMBA_CACHE_DIR=/tmp/numba \
    HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_NO_ADVISORY_WARNINGS=1 OMP_NUM_THREADS=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["entrypoint.sh"]
CMD ["kebiolm", "--help"]
