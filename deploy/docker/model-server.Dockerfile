# NeuroWeaver's own model server, for machines without a GPU. With GPUs a deployment runs vLLM's image.
#   docker build -f deploy/docker/model-server.Dockerfile -t neuroweaver/model-server:0.1.0 .
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
COPY services services
COPY gen/python gen/python
COPY clients/python clients/python
# The CPU's build of torch first: the one that the package index gives by itself brings gigabytes of CUDA along.
RUN python -m venv /opt/neuroweaver \
 && /opt/neuroweaver/bin/pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch \
 && /opt/neuroweaver/bin/pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM ${PYTHON}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /scratch neuroweaver
COPY --from=build /opt/neuroweaver /opt/neuroweaver
ENV PATH=/opt/neuroweaver/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["python", "-P", "-m", "neuroweaver.serving"]
CMD ["--config", "/etc/neuroweaver/config.json"]
