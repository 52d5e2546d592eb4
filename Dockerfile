# One image for all programs: channeld (the default), watchtowerd, regtestd, and their command lines.
#
#   docker build -t channeld .
#   docker run --rm channeld --help
#   docker run -d --name node -v node:/data -p 9735:9735 -e CHANNELD_BITCOIND_URL=... channeld
#   docker exec node channelctl info
#
# docs/operating.md says more.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY deploy/constraints.txt deploy/constraints.txt
RUN python3 -m venv /opt/channeld \
 && /opt/channeld/bin/pip install --no-cache-dir --disable-pip-version-check --requirement deploy/constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY channeld channeld
COPY watchtower watchtower
COPY wallet wallet
RUN /opt/channeld/bin/pip install --no-cache-dir --disable-pip-version-check \
      --constraint deploy/constraints.txt '.[postgres,regtest]' \
 && /opt/channeld/bin/python -m compileall -q /opt/channeld/lib

FROM ${BASE_IMAGE}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin channeld \
 && install -d -m 0700 -o channeld -g channeld /data
COPY --from=build /opt/channeld /opt/channeld
ENV PATH=/opt/channeld/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CHANNELD_DATADIR=/data \
    CHANNELD_LISTEN=0.0.0.0:9735 \
    WATCHTOWERD_DATADIR=/data \
    WATCHTOWERD_LISTEN=0.0.0.0:10029
USER channeld
WORKDIR /data
VOLUME /data
# Peers; the tower's clients. The node's own API stays inside: `docker exec` reaches it.
EXPOSE 9735 10029
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m --retries=3 CMD ["channelctl", "info"]
CMD ["channeld"]
