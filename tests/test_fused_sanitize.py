"""bench/fused_sanitize.py without its GPU: its cases hold every kernel, its table is the truth."""

import re
import sys

import pytest
from conftest import needs

from looprnn.engines import fused_plan, fused_source, fused_steps
from looprnn.engines.fused_slots import between_slots

needs("cuda.bindings", "pip install -e '.[fused]'")
needs("rich", "pip install -e '.[bench]'")
import fused_sanitize  # noqa: E402
from sanitize_cases import CASES, LEAST_TILES  # noqa: E402
from sanitize_races import CONTROLS, build_control, excused  # noqa: E402

NOT_ON_HOPPER = {"rounded128"}  # what project.cu is there


@pytest.fixture(autouse=True)
def as_the_bench_runs_them(monkeypatch):
    monkeypatch.setattr(fused_steps, "LEAST_TILES", LEAST_TILES)


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


def test_the_projection_beside_its_recurrence_is_there():
    assert launched(CASES["beside-lstm-fp16"]) == {"round_rows", "recurrence_multicast"}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_controls_compile(tmp_path, name):
    build_control(name, tmp_path / "control")
    assert (tmp_path / "control").read_bytes().startswith(b"\x7fELF")


SUMS = """========= Error: Race reported between Write access at product(const Layer &)+0xf in a:8
=========     and Read access at cells(const Layer &, int)::[lambda(int) (instance 6)]::operator ()
========= """
OF_ONE = """========= Error: Race reported between Read access at void Tile::product_of_one<worker(
 const Layer &)>(T1)+0x4660 in recurrence.9b:373
=========     and Write access at Tile::put(unsigned char *, int, int, float)+0x66f0 in a:356
========= """
COPIES = """========= Error: Race reported between Write access at warp_copy_to_all(u32)+0xa
=========     and Read access at two_tiles(unsigned int)+0xe in recurrence_multicast.3f:643
========= """
NO_SIDE = "========= Error: Race reported between something at 0x10\n========= "


def counted(races):
    return f"========= RACECHECK SUMMARY: {races} hazards displayed ({races} errors, 0 warnings)"


@pytest.mark.parametrize(
    ("right", "case", "said"),
    [
        (True, "multicast-lstm-fp16-32", [SUMS, SUMS]),
        (True, "multicast-lstm-fp16-8x2", [COPIES, SUMS]),
        (True, "courier4-lstm-fp16-1x4", [OF_ONE]),
        (False, "cluster-lstm-fp16-1", [OF_ONE]),  # a block's barrier is all that it has
        (False, "multicast-lstm-fp16-32", [COPIES]),
        (False, "grid-lstm-fp16-1", [SUMS]),
        (False, "step-lstm", [SUMS]),
        (False, "multicast-lstm-fp16-32", [SUMS, SUMS.replace("cells", "courier")]),
        (False, "multicast-lstm-fp16-32", [SUMS.replace("cells", "product")]),
        (False, "multicast-lstm-fp16-32", [SUMS.replace("Read", "Write")]),
        (False, "multicast-lstm-fp16-32", [SUMS.replace("Write", "Atomic")]),
        (False, "multicast-lstm-fp16-32", [SUMS.replace("product(", "0x10 (")]),
        (False, "multicast-lstm-fp16-32", [SUMS.replace("Read access", "something")]),
        (False, "multicast-lstm-fp16-32", [NO_SIDE]),
        (False, "multicast-lstm-fp16-32", []),
    ],
)
def test_only_what_racecheck_cannot_judge_is_excused(right, case, said):
    text = "\n".join([*said, counted(len(said))])
    assert excused(text, CASES[case].said, len(said)) == right
    assert not excused(text, CASES[case].said, len(said) + 1)  # one was not printed


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


RACED = f"print({counted(1)!r})"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("control-arrive", f"{RIGHT}; {RACED}; exit(9)", "clean but for 1"),
        ("control-arrive", CLEAN, "not found: what is excused for it can be judged now"),
        ("control-arrive", RACED, "found 1"),
        ("control-arrive", RIGHT, "failed"),  # the tool ended before it said anything
        ("control-sync", CLEAN, "clean"),
        ("control-sync", f"{RIGHT}; {RACED}; exit(9)", "found 1"),
        (
            "multicast-lstm-fp16-32",
            f"{RIGHT}; print({SUMS!r}); {RACED}; exit(9)",
            "clean but for 1",
        ),
        ("multicast-lstm-fp16-32", f"{RIGHT}; print({SUMS!r}); {RACED}; exit(1)", "found 1"),
        ("multicast-lstm-fp16-32", f"{RIGHT}; print({SUMS!r}); print({counted(2)!r})", "found 2"),
        ("multicast-lstm-fp16-32", f"print({SUMS!r}); {RACED}", "found 1"),  # no answer
    ],
)
def test_racecheck_is_clean_but_for_what_is_excused(tool, monkeypatch, capsys, name, text, says):
    tool(text)
    status = main(monkeypatch, "--cases", name, "--tools", "racecheck")
    assert status == (0 if says.startswith("clean") else 1)
    assert f"{name}, racecheck: {says}, " in capsys.readouterr().out


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
