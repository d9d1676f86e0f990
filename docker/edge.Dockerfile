# An edge daemon for ONNX slices: docker build --file docker/edge.Dockerfile --tag scissionlite-edge .
# It installs the wheels in wheels/ (made by .ci/wheel), and the rest from PyPI. docs/arm.md says how to run it.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY wheels/ /wheels/
RUN python3 -m venv /opt/scissionlite \
    && /opt/scissionlite/bin/pip install --no-cache-dir --find-links /wheels 'scissionlite[onnx,monitor]' \
    && rm -rf /wheels
RUN useradd --system --no-create-home scissionlite
ENV PATH=/opt/scissionlite/bin:/usr/bin:/bin
ENV PYTHONDONTWRITEBYTECODE=1
USER scissionlite
EXPOSE 5555 5556
ENTRYPOINT ["scissionlite"]
CMD ["serve", "--config", "/etc/scissionlite/edge.toml"]
