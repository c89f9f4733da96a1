"""Recordings as phones, browsers and recorders write them, encoded by FFmpeg from samples that a test makes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np


def encode(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    *,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    bit_rate: int | None = None,
    n_pictures: int = 0,
) -> bytes:
    """Return samples, of shape (n_samples,) or (n_samples, channels), as a file of a container and codec.

    With `n_pictures` a video stream comes first, as a camera writes it.
    """
    if samples.ndim == 1:
        samples = samples[:, np.newaxis]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    sink = io.BytesIO()
    with av.open(sink, "w", format=container, options=dict(container_options or {})) as file:
        pictures = file.add_stream("mpeg4", rate=25) if n_pictures else None
        if pictures is not None:
            pictures.width, pictures.height, pictures.pix_fmt = 320, 240, "yuv420p"
        stream = file.add_stream(codec, rate=rate, layout=layout, options=dict(options or {}))
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        for number in range(n_pictures):
            image = np.random.default_rng(number).integers(0, 256, (240, 320, 3), dtype=np.uint8)
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if pictures is not None:
            file.mux(pictures.encode(None))
        resampler = av.AudioResampler(format=stream.codec_context.format or "flt", layout=layout, rate=rate)
        fifo = av.AudioFifo()
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.astype(np.float32).reshape(1, -1)), format="flt", layout=layout
        )
        frame.sample_rate, frame.pts = rate, 0
        for one in resampler.resample(frame):
            fifo.write(one)
        while (one := fifo.read(stream.codec_context.frame_size or 1_024, partial=True)) is not None:
            file.mux(stream.encode(one))
        file.mux(stream.encode(None))
    return sink.getvalue()


def chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    """Return a chunk of RIFF that states its size, or another one."""
    return name + (len(data) if size is None else size).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    """Return a WAV file of chunks that states its size, or another one."""
    length = 4 + sum(map(len, chunks)) if size is None else size
    return b"RIFF" + length.to_bytes(4, "little") + b"WAVE" + b"".join(chunks)


def fmt(tag: int = 1, channels: int = 1, rate: int = 16_000, frame_bytes: int = 2, bits: int = 16) -> bytes:
    """Return the chunk that says what a WAV file holds."""
    fields = ((tag, 2), (channels, 2), (rate, 4), (rate * frame_bytes % 2**32, 4), (frame_bytes, 2), (bits, 2))
    return chunk(b"fmt ", b"".join(value.to_bytes(size, "little") for value, size in fields))


AWKWARD = Path(__file__).parents[3] / "shared" / "data" / "awkward"
