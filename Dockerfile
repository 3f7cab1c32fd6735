# One image for a laptop and for every node of a cluster.
#   docker build -t world-models-ray .
#   mkdir -p runs
#   docker run --rm --shm-size=2g --user "$(id -u)" -v "$PWD/runs:/work/runs" world-models-ray run tiny
# For a cluster, with the tag that cluster/ expects:
#   docker build -t REGISTRY/world-models-ray:ray2.60.0-py311 .
# On Linux x86-64 the pinned torch brings CUDA, which is gigabytes. Without:
#   docker build --build-arg DEVICE=cpu --build-arg PIP_EXTRA_INDEX_URL=URL -t world-models-ray .
# where URL is PyTorch's index of CPU builds, which its installation page names.
FROM python:3.11-slim AS build
WORKDIR /build
# Box2D has no wheel for Linux on arm64. Debian keeps only the newest version of a package: none is pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ swig
COPY pyproject.toml requirements.lock ./
ARG DEVICE=gpu
ARG PIP_EXTRA_INDEX_URL
# The packages of a run, at the lock's versions. The lock also has tools for development, which are left out.
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["gcp"], sep="\n")' > image.txt \
    && if [ "$DEVICE" = cpu ]; then sed -n 's/^torch==.*/&+cpu/p' requirements.lock >> image.txt; fi \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir -r image.txt -c requirements.lock

FROM python:3.11-slim
# A cluster's head sets its workers up with ssh and rsync; KubeRay's probes may use wget. Ray runs its commands in login
# shells, which forget PATH and read ~/.bashrc. Any user may be chosen, so any may write to HOME.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && echo "PATH=/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && useradd --create-home --uid 1000 worldmodels \
    && chmod 1777 /home/worldmodels \
    && mkdir -m 1777 /work
COPY --from=build /venv /venv
COPY pipeline /app/pipeline
COPY actors /app/actors
COPY cluster /app/cluster
COPY configs /app/configs
ENV PATH=/venv/bin:$PATH HOME=/home/worldmodels PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
# Only this command finds these sources. On a cluster a job brings its own, by --working-dir; a job without them fails
# at once instead of running the sources of the image.
ENTRYPOINT ["env", "PYTHONPATH=/app", "python", "-m", "pipeline"]
CMD ["--help"]
