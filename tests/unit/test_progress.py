"""Progress in a log: plain lines, always a last one, with the rate of this session."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from pipeline.base.progress import Progress, Update


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_log_gets_lines_at_intervals_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("collect", "episode") as show:
        for done in range(1, 26):
            clock.now += 1
            show(Update(done, 40))
    lines = capsys.readouterr().err.splitlines()
    assert [re.findall(r"[\d,]+ of [\d,]+", line) for line in lines] == [["10 of 40"], ["20 of 40"], ["25 of 40"]]
    assert all(line.startswith("collect: ") for line in lines)


def test_line_has_rate_time_left_and_metrics(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train-vae", "step") as show:
        clock.now += 20
        show(Update(1000, 4000, {"loss": "0.5"}))
    assert capsys.readouterr().err == "train-vae: 1,000 of 4,000 steps, 50.0/s, 1 min 0 s left, loss 0.5\n"


def test_rate_ignores_the_work_of_earlier_sessions(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("evolve", "generation") as show:
        clock.now += 20
        show(Update(110, 200, restored=100))
    assert capsys.readouterr().err == "evolve: 110 of 200 generations, 0.5/s, 3 min 0 s left\n"


def test_last_line_is_not_printed_twice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encode", "frame") as show:
        clock.now += 20
        show(Update(7, 7))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_last_line_is_printed_after_an_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Progress("encode", "frame") as show:
        clock.now += 1
        show(Update(3, 7))
        raise KeyboardInterrupt
    assert "3 of 7" in capsys.readouterr().err


def test_nothing_is_printed_before_the_first_update(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encode", "frame"):
        clock.now += 100
    assert capsys.readouterr().err == ""


def test_line_without_new_work_has_a_rate_of_zero(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encode", "frame") as show:
        show(Update(5, 7, restored=5))
    assert capsys.readouterr().err == "encode: 5 of 7 frames, 0.0/s, ? left\n"


def test_terminal_gets_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("collect", "episode") as show:
        show(Update(3, 10, {"steps": "12"}, restored=2))
        show(Update(10, 10, {"steps": "40"}, restored=2))
    shown = terminal.getvalue()
    assert "\r" in shown
    assert "10/10" in shown
    assert "steps=40" in shown
