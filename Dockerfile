# syntax=docker/dockerfile:1
#
# CPU:   docker build -t keepwarm .
# CUDA:  docker build -t keepwarm:cuda \
#          --build-arg BUILD_IMAGE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#          --build-arg RUN_IMAGE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 \
#          --build-arg CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_CUDA=on" .
#
# Both images of a pair must be the same distribution: the environment is copied from one to the other.

ARG BUILD_IMAGE=debian:bookworm-slim
ARG RUN_IMAGE=debian:bookworm-slim

# ---- build: compile llama.cpp, install everything into /opt/venv
FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential ca-certificates cmake python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY tools/pip.lock tools/
COPY requirements.lock ./
# GGML_NATIVE=OFF: the image may run on another CPU than the one that built it (AVX2 is still used).
ARG CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF"
# The wheel cache does not look at CMAKE_ARGS, so each value has a cache of its own.
RUN --mount=type=cache,target=/root/.cache \
    export PIP_CACHE_DIR="/root/.cache/pip-$(printf %s "$CMAKE_ARGS" | sha256sum | cut -c1-12)" \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --require-hashes -r tools/pip.lock \
    && CMAKE_ARGS="$CMAKE_ARGS" /opt/venv/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE celeryconfig.py ./
COPY app app
COPY tasks tasks
COPY workers workers
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation --no-cache-dir .

# ---- run: no compiler, no root
FROM ${RUN_IMAGE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libgomp1 libstdc++6 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/keepwarm keepwarm \
    && chmod 700 /var/lib/keepwarm
COPY --from=build /opt/venv /opt/venv
COPY models /models
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KEEPWARM_HOME=/var/lib/keepwarm \
    KEEPWARM_MODELS_DIR=/models
USER keepwarm
WORKDIR /var/lib/keepwarm
EXPOSE 8000 5555
ENTRYPOINT ["keepwarm"]
CMD ["--help"]
