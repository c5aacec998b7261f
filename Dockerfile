# The command `htrmrl` with everything it needs, also for rendering without a screen (EGL, or OSMesa on the CPU).
#
#   docker build -t htrmrl .
#   docker run --rm -v "$PWD/runs:/agent/runs" htrmrl run toy
#   docker run --rm --gpus all -v "$PWD/runs:/agent/runs" htrmrl run ml10 device=cuda
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libgles2 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY constraints.txt ./
# First and by its pin alone, as in the Makefile: this layer is large and rarely changes.
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY htrmrl_torchrl htrmrl_torchrl
COPY recipes recipes
COPY configs configs
RUN pip install --no-cache-dir '.[cli,video,hub]' -c constraints.txt

WORKDIR /agent
ENTRYPOINT ["htrmrl"]
CMD ["--help"]
