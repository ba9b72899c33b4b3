# The evaluation on CPU. How to build and run it: docs/install.md.
FROM python:3.11-slim

# PyTorch's index of CPU builds makes the image several gigabytes smaller; by default, PyPI.
ARG TORCH_INDEX=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /src
COPY . .
RUN pip install --no-deps --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch torchvision \
    && pip install --constraint constraints.txt '.[onnx,openvino,arrow]' \
    && useradd --uid 1000 --create-home eval \
    && mkdir /val /results /cache \
    && chown eval:eval /results /cache

# Away from the sources: what is installed is what runs. Reports go to /results by default.
WORKDIR /
USER 1000
VOLUME ["/results", "/cache"]
ENTRYPOINT ["pplcnet-eval"]
CMD ["--help"]
