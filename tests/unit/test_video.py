"""Films: readable by another decoder, and the same bytes for the same pictures."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.rollouts import video
from pipeline.rollouts.video import encode_video, still_of

ROOT = Path(__file__).parents[2]


def drifting(number: int) -> NDArray[np.uint8]:
    """A smooth picture (48, 96, 3) that moves a little with its number."""
    y, x = np.mgrid[:48, :96]
    channels = [128 + 100 * np.sin((x + 3 * number) / 15), 128 + 100 * np.cos(y / 9), np.full((48, 96), 8.0 * number)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def wavy(number: int) -> NDArray[np.uint8]:
    """A picture (240, 480, 3) of waves, rings and stripes, on which x264's AVX-512 code is not deterministic."""
    y, x = np.mgrid[:240, :480]
    waves = 128 + 60 * np.sin((x + 5 * number) / 17) + 40 * np.sin(y / 11)
    rings = 120 + 80 * np.sin(x * y / 3000 + number)
    stripes = (x + 9 * number) // 16 % 2 * 200
    picture = np.stack([waves, rings, stripes], axis=-1)
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


def test_opencv_reads_the_film(tmp_path: Path) -> None:
    pictures = [drifting(number) for number in range(20)]
    (tmp_path / "film.mp4").write_bytes(encode_video(pictures, Fraction(25, 2)))
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    for number, picture in enumerate(pictures):
        there, read = film.read()
        assert there, number
        assert np.abs(read[..., ::-1].astype(int) - picture).mean() < 6, number
    assert not film.read()[0]


def test_a_browser_can_play_the_film_before_it_has_all_of_it() -> None:
    film = encode_video(map(drifting, range(20)), Fraction(25))
    assert 0 < film.index(b"moov") < film.index(b"mdat"), "the index comes before the pictures"


def test_same_pictures_give_the_same_bytes_in_another_process() -> None:
    """By default, writers of films put the time into each file."""
    code = (
        "import hashlib, fractions; from tests.unit.test_video import drifting, encode_video;"
        "film = encode_video(map(drifting, range(20)), fractions.Fraction(25, 2));"
        "print(hashlib.sha256(film).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    film = encode_video([drifting(number) for number in range(20)], Fraction(25, 2))
    assert hashlib.sha256(film).hexdigest() == other.stdout.strip()


def test_bytes_depend_neither_on_the_cpu_nor_on_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """x264's code for AVX-512 gives other bytes than its plain C, and on some content other bytes in each call."""
    pictures = [wavy(number) for number in range(12)]
    films = {encode_video(pictures, Fraction(25, 2)) for _ in range(10)}
    monkeypatch.setitem(video.OPTIONS, "x264-params", "asm=0")
    assert films == {encode_video(pictures, Fraction(25, 2))}


def test_a_film_is_far_smaller_than_its_pictures() -> None:
    pictures = [drifting(number) for number in range(20)]
    assert len(encode_video(pictures, Fraction(25, 2))) < sum(picture.nbytes for picture in pictures) / 20


def test_still_image_is_the_first_picture() -> None:
    pictures = [drifting(number) for number in range(5)]
    still = cv2.imdecode(np.frombuffer(still_of(encode_video(pictures, Fraction(25, 2))), np.uint8), cv2.IMREAD_COLOR)
    assert still is not None
    assert np.abs(still[..., ::-1].astype(int) - pictures[0]).mean() < 6
