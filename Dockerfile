# Two images, without and with training. Build them here, at the top of the repository:
#   docker build --tag emotion-batch:0.1.0 .
#   docker build --target train --tag emotion-batch:0.1.0-train .
# The first one labels, extracts, reports and queries, and adds 1.3 GB to the base image. deploy/kubernetes uses it. The second one also
# trains, with TensorFlow, and adds 3.3 GB. Neither has the encoders x264 and x265 (GPL); see THIRD_PARTY.md.
FROM python:3.11-slim AS build
# These make empty libraries in place of the two encoders. They stay in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY emotion_batch emotion_batch
COPY models models
COPY deploy/drop_encoders.sh deploy/drop_encoders.sh
RUN python -m venv /opt/emotion-batch \
    && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && wheel="$(ls /wheels/*.whl)" \
    && /opt/emotion-batch/bin/pip install --no-cache-dir --constraint constraints.txt "${wheel}[s3,gcs,azure]" \
    && sh deploy/drop_encoders.sh /opt/emotion-batch

FROM build AS build-train
RUN wheel="$(ls /wheels/*.whl)" \
    && /opt/emotion-batch/bin/pip install --no-cache-dir --constraint constraints.txt "${wheel}[train]"

FROM python:3.11-slim AS base
LABEL org.opencontainers.image.title="emotion-batch" \
      org.opencontainers.image.description="Labels the emotions in a whole archive of recordings" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT AND LicenseRef-emotion-batch-models"
# These are numbers, because Kubernetes cannot tell from a name that the user is not root.
RUN useradd --system --uid 1000 --user-group --home-dir /tmp emotion-batch
COPY LICENSE THIRD_PARTY.md /usr/share/doc/emotion-batch/
# Everything is written to /tmp, so the rest may be read-only.
ENV PATH=/opt/emotion-batch/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp \
    NUMBA_CACHE_DIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
CMD ["emotion-batch", "--help"]

FROM base AS train
COPY --from=build-train /opt/emotion-batch /opt/emotion-batch

# The last stage is the one that is built without --target.
FROM base AS label
COPY --from=build /opt/emotion-batch /opt/emotion-batch
