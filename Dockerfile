# syntax=docker/dockerfile:1
#
# docker build -t penstock .
# docker run --gpus all -p 8000:8000 -v penstock-models:/var/cache/huggingface -v penstock-kernels:/var/cache/penstock \
#     penstock --model Qwen/Qwen3-0.6B
#
# For machines without a GPU, some gigabytes smaller:
# docker build -t penstock:cpu --build-arg BASE=ubuntu:24.04 --build-arg EXTRAS= --build-arg CUDA_COMPILER= \
#     --build-arg TORCH_INDEX_URL=<index of PyTorch's CPU wheels> .

# The "base" flavour: what the driver on the host must be able to do, and libraries that make it do when it is older.
# "runtime" would bring cuBLAS and the rest a second time: torch's wheels depend on their own.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04


# --------------------------------------------------------------------------------------------------------- the system
# hadolint ignore=DL3006
FROM ${BASE} AS system
# The compiler stays in the image. Triton needs it (and Python.h) for the stubs through which it launches kernels, and the
# C++ kernels are compiled anew, once, where the CPU is not the one that built the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/penstock
ENV PATH=/opt/penstock/bin:$PATH


# --------------------------------------------------------------------------------------------------- the dependencies
# Their list is a stage of its own: the layer below is made again when the list changes, not whenever pyproject.toml does.
FROM system AS requirements
ARG EXTRAS="cuda"
COPY tools/docker/requirements.py pyproject.toml /src/
RUN python3 /src/requirements.py /src/pyproject.toml ${EXTRAS} > /requirements.txt

FROM system AS dependencies
# Empty: the package index' own build of torch, which is the CUDA one.
ARG TORCH_INDEX_URL=""
# FlashInfer compiles the kernels that a model and a GPU need when they are first used. All combinations would be hours
# of nvcc and gigabytes, so the image has the compiler (of the version that torch's CUDA libraries are pinned to) and
# keeps what it makes in the volume /var/cache/penstock: minutes at the first start with a model, none later.
ARG CUDA_COMPILER="cuda-toolkit[nvcc,cccl]"
RUN --mount=type=bind,from=requirements,source=/requirements.txt,target=/tmp/requirements.txt \
    --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} -r /tmp/requirements.txt ${CUDA_COMPILER}
# The wheels' CUDA laid out as an installed toolkit is; libcuda.so itself is the driver's and comes with the host.
COPY tools/docker/cuda_home.sh /tmp/
RUN sh /tmp/cuda_home.sh /opt/cuda


# -------------------------------------------------------------------------------------------------------- the package
FROM dependencies AS wheel
COPY . /src
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheels /src

FROM dependencies
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/penstock-*.whl \
    && useradd --uid 10001 --gid 0 --create-home --shell /usr/sbin/nologin penstock \
    && mkdir -p /var/cache/huggingface /var/cache/penstock \
    # The group is root's, without its rights: so any other --user can write there too.
    && chown -R penstock:0 /var/cache/huggingface /var/cache/penstock \
    && chmod -R g=u /var/cache/huggingface /var/cache/penstock /home/penstock
ENV CUDA_HOME=/opt/cuda \
    DO_NOT_TRACK=1 \
    # Its norms as compiled kernels; with CuTe installed it would generate them at every start.
    FLASHINFER_USE_CUDA_NORM=1 \
    FLASHINFER_WORKSPACE_BASE=/var/cache/penstock \
    HF_HOME=/var/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/home/penstock \
    PENSTOCK_HOST=0.0.0.0 \
    TRITON_CACHE_DIR=/var/cache/penstock/triton \
    XDG_CACHE_HOME=/var/cache/penstock
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="An OpenAI-compatible LLM endpoint in one program" \
      org.opencontainers.image.licenses="Apache-2.0"
VOLUME ["/var/cache/huggingface", "/var/cache/penstock"]
WORKDIR /home/penstock
USER 10001:0
EXPOSE 8000
# It drains on SIGTERM: give `docker stop` the time (--time, or --stop-timeout at the start) that answers may take.
STOPSIGNAL SIGTERM
# Healthy is when it answers requests. Another --port or TLS needs another --health-cmd.
HEALTHCHECK --start-period=30m --start-interval=2s --interval=15s --timeout=5s --retries=10 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["penstock", "serve"]
