# foreman's image; docs/deploy/container.md says how to build and run it.
# Each step below is also run by deploy/test/test_container.py, without a container.

# A mirror, or a digest: --build-arg BASE=docker.io/library/python:3.11-slim@sha256:…
ARG BASE=docker.io/library/python:3.11-slim
# Told by `/healthz`, the package and the label alike.
ARG VERSION=0.1.0

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The pins, as wheels alone: no compiler is needed, and no code of theirs runs here.
COPY requirements requirements
RUN pip install --quiet --require-hashes --no-deps --only-binary :all: -r requirements/build.txt \
 && pip wheel --quiet --require-hashes --no-deps --only-binary :all: -r requirements/server.txt --wheel-dir /wheels

# foreman's own.  A version that is not in its normal form (v1.0) has another file name, and ends the build at `ls`.
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY foreman foreman
COPY twisted twisted
ARG VERSION
RUN sed --in-place "s/^__version__ = .*/__version__ = \"${VERSION}\"/" foreman/__init__.py \
 && pip wheel --quiet --no-index --no-deps --no-build-isolation . --wheel-dir /wheels \
 && ls "/wheels/foreman-${VERSION}-py3-none-any.whl"

# Bytecode that does not ask for its source's time, and twistd's cache of plugins, which is looked through at every start
# and written anew where a plugin is not older than it: layers may round times, and a read-only root takes no cache.
RUN python -m venv --without-pip /opt/foreman \
 && pip --python /opt/foreman install --quiet --no-index --find-links /wheels --no-compile "foreman[server]==${VERSION}" \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/foreman/lib \
 && touch --date=1980-01-01 /opt/foreman/lib/python3*/site-packages/twisted/plugins/*.py \
 && /opt/foreman/bin/twistd --help > /dev/null

FROM ${BASE}
# Nothing is installed here again, and what is not there has no vulnerabilities.
RUN pip uninstall --quiet --yes --root-user-action=ignore pip setuptools wheel \
 && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/foreman /opt/foreman
ENV PATH=/opt/foreman/bin:${PATH} PYTHONUNBUFFERED=1 FOREMAN_ADDR=:8080 FOREMAN_DB=/data/foreman.db

USER 10001:10001
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whether the process is well, not whether the target is there: that is /readyz's and the warnings' to say.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "foreman.healthcheck"]
ENTRYPOINT ["twistd", "--nodaemon", "--pidfile=", "foreman"]

# Last, since they change with each build.
ARG VERSION
ARG REVISION=
ARG SOURCE=
ARG CREATED=
LABEL org.opencontainers.image.title="foreman" \
      org.opencontainers.image.description="One small daemon in front of one Ollama: a durable queue that speaks Ollama" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}"
