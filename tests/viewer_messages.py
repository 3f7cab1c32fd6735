"""Messages of a viewer's process, unpacked as the page does."""

from __future__ import annotations

import json
import struct
from typing import Any


def unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A message of ``pipeline.view.wire.to_bytes``: its header, and the bytes of its arrays by name."""
    (length,) = struct.unpack_from("<I", message)
    header: dict[str, Any] = json.loads(message[4 : 4 + length])
    start, blobs = 4 + length, {}
    for part in header["parts"]:
        blobs[part["name"]] = message[start : start + part["size"]]
        start += part["size"]
    return header, blobs
