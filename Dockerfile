# A slim image that runs the same command as a laptop does:
#   docker build -t world-models-ray .
#   mkdir -p runs
#   docker run --rm --shm-size=2g --user "$(id -u)" -v "$PWD/runs:/work/runs" world-models-ray run tiny
# On Linux x86-64 the pinned torch brings CUDA; see README.md for a CPU build.
FROM python:3.11-slim AS build
WORKDIR /app
COPY requirements.lock ./
# Development tools are pinned in the same lock, and stay out of the image.
RUN python -m venv /venv \
    && grep -vE '^(hypothesis|librt|mypy|mypy-extensions|pytest|pytest-timeout|ruff|types-.*)==' requirements.lock > image.lock \
    && /venv/bin/pip install --no-cache-dir -r image.lock

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 worldmodels
COPY --from=build /venv /venv
COPY --chown=worldmodels pipeline /app/pipeline
COPY --chown=worldmodels actors /app/actors
COPY --chown=worldmodels cluster /app/cluster
COPY --chown=worldmodels configs /app/configs
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/tmp
RUN mkdir -m 1777 /work
USER worldmodels
WORKDIR /work
ENTRYPOINT ["python", "-m", "pipeline"]
CMD ["--help"]
