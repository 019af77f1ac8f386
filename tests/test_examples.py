"""The examples, as a user types them: what their README says, and packages that do not come."""

import re
import shlex
import subprocess
import sys

import pytest
import shared
import spell
import stream
from conftest import ROOT
from real_weights import fetched

README = (ROOT / "examples/README.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def g2p_wheel():
    return fetched(spell.PACKAGE)


@pytest.fixture(scope="module")
def silero_wheel():
    return fetched(stream.PACKAGE)


@pytest.mark.parametrize("line", BLOCK.splitlines())
def test_what_the_examples_readme_says_runs(line, g2p_wheel, silero_wheel):
    program, *rest = shlex.split(line)
    assert program == ".venv/bin/python"
    done = subprocess.run([sys.executable, *rest], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert any(known in done.stdout for known in ("W AH1 G IH0 NG", "silero-vad says"))


def test_without_a_network_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(shared.NotFetched, match=r"type: python -m pip download .* g2p-en==2\.1\.0"):
        shared.fetch(spell.PACKAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_not_read(tmp_path):
    (tmp_path / spell.PACKAGE.file).write_bytes(b"half of it")
    with pytest.raises(shared.WrongFile, match="remove it and run again"):
        shared.fetch(spell.PACKAGE, tmp_path)
