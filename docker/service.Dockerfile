# The API. It never loads torch, so its image does without torch and the models' weights.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/touchstone
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python requirements.py < pyproject.toml > requirements.txt \
    && /opt/touchstone/bin/pip install -c constraints.txt -r requirements.txt
COPY README.md ./
COPY touchstone touchstone
COPY service service
COPY workers workers
RUN /opt/touchstone/bin/pip install --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home touchstone && install -d -o touchstone -g touchstone /data
COPY --from=build /opt/touchstone /opt/touchstone
ENV PATH=/opt/touchstone/bin:$PATH \
    TOUCHSTONE_HOME=/data \
    TOUCHSTONE_HOST=0.0.0.0 \
    TOUCHSTONE_PORT=8000
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# As `touchstone up` asks: four questions in a row without an answer.
HEALTHCHECK --interval=5s --timeout=5s --retries=4 --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
CMD ["python", "-m", "service"]
