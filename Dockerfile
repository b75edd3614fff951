# One image for every kind of process: the web server (CMD), and as other commands, all in docs/operations.md, the verifier,
# `python manage.py jobs` or `celery -A agentauth worker` and `celery -A agentauth beat`, and `agentauth …`.
# Two stages: the second carries no compiler and no pip cache. Its extras are the libraries of every key backend and of the
# log's store; `sbom.json` (`make audit`) lists them from the lock files.
# The image itself was not built yet: tests run its ENV, its files (COPY), its collectstatic and its commands as
# processes (docs/deploy.md).
# The base is named by digest, since a tag can be moved. To take its security updates, put the digest that
# `docker buildx imagetools inspect python:3.13-slim` prints into both lines.
FROM python:3.13-slim@sha256:70729b46c69b4f1e97c4822c1af3df53a1476cf5ddc6c087c0c10bc3a5678c2f AS build
WORKDIR /app
COPY requirements-production.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements-production.txt

FROM python:3.13-slim@sha256:70729b46c69b4f1e97c4822c1af3df53a1476cf5ddc6c087c0c10bc3a5678c2f
RUN useradd --system --uid 10001 --home-dir /app agentauth
COPY --from=build /venv /venv
WORKDIR /app
COPY manage.py ./
COPY agentauth agentauth
COPY audit audit
COPY kms kms
COPY registry registry
COPY verifier verifier
COPY approvals approvals
COPY locale locale
COPY templates templates
COPY static static
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 VAR_DIR=/var/lib/agentauth
RUN mkdir -m 0700 $VAR_DIR && chown agentauth $VAR_DIR
RUN SECRET_KEY=build-only PUBLIC_URL=https://build.example VAR_DIR=/tmp/build python manage.py collectstatic --noinput
# The command of docs/install.md. `--owner` adds nothing: this container's environment is all there is.
RUN printf '%s\n' '#!/bin/sh' '[ "$1" != --owner ] || shift' 'exec python /app/manage.py "$@"' > /usr/local/bin/agentauth \
    && chmod 0755 /usr/local/bin/agentauth
USER 10001
EXPOSE 8000
CMD ["python", "-m", "agentauth", "web", "--bind", "0.0.0.0:8000"]
