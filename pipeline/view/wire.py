"""Messages between the page, the server and a viewer's process.

The page sends JSON, which is checked here before anything else looks at it. The viewer's process sends a header in JSON
and arrays behind it, in one binary message: 4 bytes with the header's length (little endian), the header, the arrays.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.data.frames import FRAME_SIZE
from pipeline.view.json_numbers import without_nan

# The longest honest message holds one number of up to 20 characters for each dimension of z.
LARGEST_MESSAGE_BYTES = 32_768

_MOST_NUMBERS = 1024
_LARGEST_SIDE = 960  # pixels of a scene, beyond which it is shrunk
_JPEG_QUALITY = 88

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Seen(_Strict):
    """The page has shown the message of this number, and those before it."""

    do: Literal["seen"]
    number: int = Field(ge=0)


class Steer(_Strict):
    """The person's action from now on; pictures tell the number of the newest action that they show."""

    do: Literal["steer"]
    number: int = Field(ge=0)
    action: list[Number] = Field(max_length=_MOST_NUMBERS)


class Wheel(_Strict):
    """The wheel goes to the person or the controller."""

    do: Literal["wheel"]
    holder: Literal["controller", "person"]


class Sleep(_Strict):
    """Fall asleep or wake up."""

    do: Literal["dream"]
    on: bool


class Temperature(_Strict):
    """Uncertainty of dreams."""

    do: Literal["temperature"]
    value: float = Field(ge=0.01, le=5)


class Pause(_Strict):
    """Pause or resume."""

    do: Literal["pause"]
    on: bool


class StepOnce(_Strict):
    """One step while the world stands still."""

    do: Literal["step"]


class Speed(_Strict):
    """Speed in multiples of the game's own."""

    do: Literal["speed"]
    value: float = Field(ge=0.05, le=8)


class Track(_Strict):
    """Begin another episode."""

    do: Literal["track"]
    seed: int = Field(ge=0, lt=2**31)


class Hold(_Strict):
    """Hold latents, or let go of them."""

    do: Literal["hold"]
    z: list[Number] | None = Field(max_length=_MOST_NUMBERS)


Message = Seen | Steer | Wheel | Sleep | Temperature | Pause | StepOnce | Speed | Track | Hold

_ANY: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="do")])


def read_message(text: str) -> Message:
    """Read a message of the page.

    Raises:
        ValueError: It is no such message.
    """
    try:
        return _ANY.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'message'}: {first['msg']}") from None


def to_bytes(kind: str, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Pack a message of a viewer's process.

    Args:
        kind: Kind of the message, the key ``is`` of its header.
        facts: Further entries of the header; a number that is not finite is sent as null.
        arrays: Arrays by name. ``scene`` is sent as a JPEG if it is larger than a frame of V; other uint8 arrays are
            sent as they are, and all others as float32.
    """
    parts, blobs = [], []
    for name, array in (arrays or {}).items():
        form, blob = _encoded(name, array)
        parts.append({"name": name, "form": form, "shape": array.shape, "size": len(blob)})
        blobs.append(blob)
    header = json.dumps({"is": kind, **without_nan(facts), "parts": parts}, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(header)), header, *blobs])


def number_of(message: bytes) -> int:
    """Number of a packed message, which the page acknowledges; 0 if it has none."""
    (size,) = struct.unpack_from("<I", message)
    return int(json.loads(message[4 : 4 + size]).get("number", 0))


def _encoded(name: str, array: NDArray[Any]) -> tuple[str, bytes]:
    if array.dtype != np.uint8:
        return "f32", array.astype("<f4").tobytes()
    if name != "scene" or array.size <= FRAME_SIZE:
        return "rgb", array.tobytes()
    scale = _LARGEST_SIDE / max(array.shape[:2])
    if scale < 1:
        array = cv2.resize(array, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "jpeg", encoded.tobytes()
