"""Films: what another decoder makes of them, and the same bytes for the same pictures."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.rollouts.video import encode_video


def drifting(number: int) -> NDArray[np.uint8]:
    """A smooth picture (48, 96, 3) that moves a little with its number."""
    y, x = np.mgrid[:48, :96]
    channels = [128 + 100 * np.sin((x + 3 * number) / 15), 128 + 100 * np.cos(y / 9), np.full((48, 96), 8.0 * number)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def test_opencv_reads_what_was_filmed(tmp_path: Path) -> None:
    pictures = [drifting(number) for number in range(20)]
    (tmp_path / "film.webm").write_bytes(encode_video(pictures, Fraction(25, 2)))
    film = cv2.VideoCapture(str(tmp_path / "film.webm"))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    for number, picture in enumerate(pictures):
        there, read = film.read()
        assert there, number
        assert np.abs(read[..., ::-1].astype(int) - picture).mean() < 6, number
    assert not film.read()[0]


def test_the_same_pictures_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [drifting(number) for number in range(20)]
    first = encode_video(pictures, Fraction(25, 2))
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    assert encode_video(iter(pictures), Fraction(25, 2)) == first


def test_a_film_is_far_smaller_than_its_pictures() -> None:
    pictures = [drifting(number) for number in range(20)]
    assert len(encode_video(pictures, Fraction(25, 2))) < sum(picture.nbytes for picture in pictures) / 20
