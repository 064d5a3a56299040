# A worker: one process, one device. By default torch is the CPU's build; for CUDA build with
#   --build-arg TORCH_INDEX=
# which takes torch's ordinary wheels, and these bring the CUDA libraries with them. `make` knows the same variable.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/touchstone
COPY constraints.txt tools/torch_index.py ./
# A layer of its own, which no change of the project makes anew.
RUN /opt/touchstone/bin/python torch_index.py constraints.txt \
    && /opt/touchstone/bin/pip install -c constraints.txt torch
COPY pyproject.toml ./
COPY README.md ./
COPY touchstone touchstone
COPY service service
COPY workers workers
RUN /opt/touchstone/bin/pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home touchstone && install -d -o touchstone -g touchstone /data
COPY --from=build /opt/touchstone /opt/touchstone
ENV PATH=/opt/touchstone/bin:$PATH \
    TOUCHSTONE_HOME=/data
USER 10001
WORKDIR /data
VOLUME /data
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-m", "workers.healthcheck"]
CMD ["python", "-m", "workers"]
