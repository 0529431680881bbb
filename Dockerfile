# syntax=docker/dockerfile:1
# `pycap serve` on CPUs (docs/serving.md): one stage builds the wheel, the other one runs it and has no compiler.
#   docker build -t pycap-serve .
#   docker run --rm --read-only -p 8000:8000 -v "$PWD/runs/coco/best:/model:ro" pycap-serve
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# Debian keeps one version of g++ at a time, so none is pinned; CMake and Ninja come as wheels, as pyproject.toml asks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/pip PYCAP_CUDA=OFF python -m pip wheel --no-deps --wheel-dir /wheels .
RUN --mount=type=cache,target=/var/cache/pip python -m venv /opt/pycap \
    && /opt/pycap/bin/python -m pip install "$(echo /wheels/*.whl)[web]"

FROM python:${PYTHON}-slim
# The kernels' OpenMP.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin pycap
COPY --from=build /opt/pycap /opt/pycap
ENV PATH=/opt/pycap/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# By number, so that Kubernetes can see that it is not root.
USER 10001
WORKDIR /model
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# A checkpoint is mounted at /model; options of `pycap serve` may follow the image's name.
ENTRYPOINT ["pycap", "serve", "/model", "--host", "0.0.0.0"]
