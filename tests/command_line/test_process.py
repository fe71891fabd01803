"""The command line as a process: exit codes, signals, terminals and pipes."""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time

import pytest
from PIL import Image

from tests.command_line.runs import GOLDEN_FLAGS, TINY, Run, assert_refused
from tests.conftest import GOLDEN
from uso_core.storage.png import read_request


def test_a_process_ends_with_code_2_and_two_lines(process, golden_environment, tmp_path, monkeypatch):
    monkeypatch.setenv("AE", str(GOLDEN / "dit_lora.safetensors"))  # detected late, after PyTorch is loaded
    running = process("--prompt", "a cat", *GOLDEN_FLAGS, "--save_path", tmp_path / "saved")
    out, err = running.communicate(timeout=240)
    assert_refused(Run(running.returncode, out, err, tmp_path / "saved"))


def read_until(terminal: int, text: str, seconds: float) -> str:
    """A terminal's output until `text` appears, its other end is closed, or time is up."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen and select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # Linux says so when the other end is closed
            break
    return seen


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals and another Ctrl+C there")
@pytest.mark.parametrize("moment", ["reading", "step 3 of 500"])
def test_ctrl_c_ends_a_run_with_code_130(moment, process, golden_environment, tmp_path):
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()  # on a terminal the bar shows where the run is
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # unless the bar has no room
        many = ("--width", 128, "--height", 128, "--num_steps", 500, "--num_images_per_prompt", 60)
        saved = ("--save_path", tmp_path / "saved")
        running = process("--prompt", "a cat", *GOLDEN_FLAGS, *saved, *many, stderr=theirs)
        os.close(theirs)
        seen = read_until(ours, moment, 240)
        assert moment in seen
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(timeout=120) == 130
        seen += read_until(ours, "never", 5)
    finally:
        os.close(ours)
    assert "Traceback" not in seen
    assert seen.rstrip().endswith("stopped")
    if moment != "reading":
        assert "s/step" in seen
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".part")] == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_files_need_not_be_unicode(process, tmp_path):
    name = os.fsdecode(b"im\xff.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    run = process("--prompt", "a boat", "--image_paths", "", tmp_path / name, "--save_path", tmp_path / "out", *TINY)
    out, errors = run.communicate(timeout=240)
    assert (run.returncode, "Traceback" in errors) == (0, False)
    assert read_request(tmp_path / "out/0_0.png").styles[0].name == "im?.png"


def test_a_terminal_that_cannot_show_a_name_and_a_closed_pipe_end_nothing(process, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    line = ("--prompt", "a {red|blue} boat", *TINY, "--save_path")
    run = process(*line, tmp_path / "日", env=environment)
    out, errors = run.communicate(timeout=240)
    assert (run.returncode, len(list((tmp_path / "日").glob("*.png")))) == (0, 2)
    assert "\\u65e5" in out
    run = process(*line, tmp_path / "closed")
    run.stdout.close()
    assert run.wait(240) == 0
    assert "Traceback" not in run.stderr.read()
    assert len(list((tmp_path / "closed").glob("*.png"))) == 2
