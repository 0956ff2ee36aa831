# gpureg with all that it needs on a GPU but the driver, which the host has:
#
#     docker build --tag gpureg .
#     docker run --rm --gpus all gpureg
#
# runs `gpureg check`. For a driver that runs CUDA 12 alone: docker build --build-arg CUDA=cuda12 --tag gpureg .

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# The extra of gpureg that fits the host's driver: cuda12 or cuda13.
ARG CUDA=cuda13
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/gpureg-*.whl)[${CUDA},bfloat16]"
RUN useradd --create-home --uid 1000 gpureg
USER 1000
WORKDIR /home/gpureg
# What the container asks of the driver.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["gpureg", "check"]
