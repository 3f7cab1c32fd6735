"""Video encoding: much smaller than a GIF, in full colour, with playback controls in every browser."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray
from PIL import Image

# The same pictures give the same bytes on every CPU: one thread, no random IDs in the container, and only those
# algorithms of x264 that are equal on all CPUs. The result of its AVX-512 code differs from call to call.
OPTIONS: dict[str, object] = {"crf": "26", "preset": "veryfast", "x264-params": "cpu-independent=1"}
_CONTAINER = {"fflags": "+bitexact", "movflags": "+faststart"}  # a browser plays it before it has all of it


def encode_video(pictures: Iterable[NDArray[np.uint8]], per_second: Fraction) -> bytes:
    """Encode pictures as H.264 in MP4, which browsers, phones and chats play.

    Args:
        pictures: Pictures, at least one, each (H, W, 3) uint8 RGB, of one size, with H and W even.
        per_second: Pictures per second.
    """
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"  # a file: the encoder writes the index last, and then moves it to the front
        with av.open(str(film), "w", format="mp4", options=_CONTAINER) as container:
            stream = container.add_stream("libx264", rate=per_second)
            stream.pix_fmt = "yuv420p"
            stream.options = OPTIONS
            stream.codec_context.thread_count = 1
            stream.codec_context.flags |= Flags.bitexact
            for number, picture in enumerate(pictures):
                if number == 0:
                    stream.height, stream.width = picture.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
            container.mux(stream.encode(None))
        return film.read_bytes()


def still_of(video: bytes) -> bytes:
    """First picture of a film as a JPEG, shown before it plays and where it cannot."""
    with av.open(io.BytesIO(video), "r") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
