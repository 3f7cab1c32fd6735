"""The formats of numbers, durations and sizes."""

from __future__ import annotations

import pytest

from pipeline.base import formatting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.number(1234.56, 1), "1,234.6"),
        (formatting.number(-3.21, 1), "\N{MINUS SIGN}3.2"),
        (formatting.number(-0.04, 1), "0.0"),
        (formatting.duration(5.68), "5.7 s"),
        (formatting.duration(59.97), "1 min 0 s"),
        (formatting.duration(200), "3 min 20 s"),
        (formatting.duration(4320), "1 h 12 min"),
        (formatting.size(999), "999 B"),
        (formatting.size(999_600), "1 MB"),
        (formatting.size(1_234_567), "1.23 MB"),
        (formatting.size(25.7e12), "25.7 TB"),
        (
            formatting.score({"mean": 906.54, "sd": 21.0, "low": 901.2, "high": None}),
            "906.5 +- 21.0 (95 % interval 901.2 to not finite)",
        ),
    ],
)
def test_numbers_are_formatted_readably(text: str, expected: str) -> None:
    assert text == expected
