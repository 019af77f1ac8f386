# The same as Dockerfile with the embedded tritonserver on a small Python image, for hosts without a GPU.
# BASE_IMAGE needs Python 3.11 or 3.12 with pip and libpython.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /looprnn

COPY constraints.txt ./
RUN python3 -m pip install -c constraints.txt \
      nvidia-pytriton cuda-python \
      numpy safetensors rich "tritonclient[grpc,http]" onnx onnxruntime pytest hypothesis pyyaml h5py

COPY . .
RUN python3 -m pip install --no-deps -e client -e .
