"""bench/fused_sanitize.py without its GPU: its cases hold every kernel, its table is the truth."""

import re
import sys

import pytest
from conftest import needs

from looprnn.engines import fused_plan, fused_source
from looprnn.engines.fused_slots import between_slots

needs("cuda.bindings", "pip install -e '.[fused]'")
needs("rich", "pip install -e '.[bench]'")
import fused_sanitize  # noqa: E402
from sanitize_cases import CASES  # noqa: E402

NOT_ON_HOPPER = {"rounded128"}  # what project.cu is there


def launched(case):
    most = case.spec.profile
    program = fused_plan.program(case.spec, case.ways(), most.batch.max, most.time.max)
    if case.spec.streaming:
        program = between_slots(program, case.spec, most.batch.max, "both")
    return {launch.kernel for launch in program.launches}


def test_each_case_launches_the_kernel_it_is_about():
    for case in CASES.values():
        assert case.kernel in launched(case), case.name


def test_every_kernel_is_some_cases():
    kernels = set()
    for path in fused_source.FOLDER.glob("*.cu"):
        kernels |= set(
            re.findall(
                r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(',
                path.read_text(),
            )
        )
    assert len(kernels) > 20
    assert kernels - NOT_ON_HOPPER == set.union(*map(launched, CASES.values())) - NOT_ON_HOPPER


RIGHT = "print('the answer is right')"
CLEAN = f"{RIGHT}; print('========= ERROR SUMMARY: 0 errors')"
SAYS = {
    "clean": CLEAN,
    "found 2": f"{RIGHT}; print('========= RACECHECK SUMMARY: 2 hazards displayed'); exit(9)",
    "found 3": f"{RIGHT}; print('========= ERROR SUMMARY: 3 errors')",
    "failed": "print('AssertionError'); print('========= ERROR SUMMARY: 0 errors'); exit(1)",
    "not ended within 2 s": f"{CLEAN}; import time; time.sleep(600)",
}
MORE = {
    "a status that only the tool explains": f"{CLEAN}; exit(9)",
    "no summary": RIGHT,
    "an answer that is not right": "print('========= ERROR SUMMARY: 0 errors')",
}


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tool(program text): a compute-sanitizer that says so of every case; none is built."""

    def make(text):
        path = tmp_path / "compute-sanitizer"
        path.write_text(f"#!{sys.executable}\n{text}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(fused_sanitize, "ProcessPoolExecutor", Unbuilt)
    return make


class Unbuilt(fused_sanitize.ThreadPoolExecutor):
    def __init__(self, jobs, mp_context):
        super().__init__(jobs)

    def submit(self, *_):
        return super().submit(int)


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fused_sanitize.py", *words])
    return fused_sanitize.main()


@pytest.mark.parametrize(
    ("text", "says"), [*((v, k) for k, v in SAYS.items()), *((v, "failed") for v in MORE.values())]
)
def test_only_a_clean_case_is_called_clean(tool, monkeypatch, capsys, text, says):
    tool(text)
    words = (
        "--cases",
        "narrow8-fp16",
        "--tools",
        "memcheck",
        "--limit",
        "2" if "within" in says else "60",
    )
    assert main(monkeypatch, *words) == (0 if says == "clean" else 1)
    said = capsys.readouterr().out
    assert f"narrow8-fp16, memcheck: {says}, " in said
    assert f"{int(says == 'clean')} of 1 clean" in said


def test_one_that_is_not_clean_does_not_hide_among_others(tool, monkeypatch, capsys):
    tool(f"import sys\nif 'narrow1-bf16' in sys.argv and 'synccheck' in sys.argv: exit(3)\n{CLEAN}")
    assert main(monkeypatch, "--cases", "narrow1-*", "narrow8-*") == 1
    assert "17 of 18 clean" in capsys.readouterr().out


def test_a_case_of_no_such_name_says_where_the_names_are(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(monkeypatch, "--cases", "grid*", "lstm")
    assert "--cases lstm: there is none of that name; --list shows them" in capsys.readouterr().err


def test_the_list(monkeypatch, capsys):
    assert main(monkeypatch, "--list", "--cases", "grid*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["recurrence_grid"] * len(lines)
