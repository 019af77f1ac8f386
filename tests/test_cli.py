"""The command line: expected mistakes are one line and an exit status, never a traceback; one bad
variant stops no other; signals leave nothing half done.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from looprnn_client.cli import main as ask

from looprnn import cli, engines
from looprnn.cli import main
from looprnn.errors import ServerError


def variant_file(folder: Path, stem: str = "mine", hidden_size: int = 3, **weights: object) -> Path:
    path = folder / f"{stem}.toml"
    source = "\n".join(f"{k} = {json.dumps(v)}" for k, v in (weights or {"seed": 1}).items())
    path.write_text(
        f'cell = "rnn"\ninput_size = 2\nhidden_size = {hidden_size}\n[weights]\n{source}\n'
    )
    return path


def build(tmp_path: Path, *arguments: object, engine: str = "onnxruntime") -> int:
    repository = ["--repository", str(tmp_path / "repository")]
    return main(["build", *repository, "--engine", engine, *map(str, arguments)])


def test_the_command_builds_and_says_what_happened(tmp_path, capsys):
    spec = variant_file(tmp_path)
    assert build(tmp_path, "--spec", spec) == 0
    said = capsys.readouterr().out
    assert "built" in said and "Serve it: looprnn serve. One that runs serves it once" in said
    assert build(tmp_path, "--spec", spec) == 0
    said = capsys.readouterr().out
    assert "unchanged" in said and "Serve it" not in said
    assert (tmp_path / "repository/mine/1/model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["build", "--variant", "nothing"], 1, "no such variant"),
        (
            ["build", "--variants", "/nowhere"],
            1,
            "no variants here, wanted NAME.toml files. Type it ",
        ),
        (
            ["inspect", "lstm", "--variants", "/nowhere"],
            1,
            "There is no folder /nowhere. Type it where",
        ),
        (
            ["verify", "lstm", "--variants", "/nowhere"],
            1,
            "There is no folder /nowhere. Type it where",
        ),
        (["build", "--engine", "tensort"], 2, "invalid choice: 'tensort'"),
        (["build", "mine"], 1, "mine: which variant to build is said by --variant mine"),
        (
            ["build", "--variant", "variants/mine.toml"],
            1,
            "Type: --variant mine; for a file elsewhere",
        ),
        (["build", "--workspace", "much"], 2, "a whole number of at least 0, got 'much'"),
        (["build", "--workspace", "-1"], 2, "a whole number of at least 0, got -1"),
        (["build", "--keep", "-1"], 2, "--keep: must be a whole number of at least 0, got -1"),
        (["build", "--keep", "1.5"], 2, "a whole number of at least 0, got '1.5'"),
        (["serve", "--http-port", "65536"], 2, "a whole number from 0 to 65535, got 65536"),
        (["serve", "--grpc-port", "-1"], 2, "a whole number from 0 to 65535, got -1"),
        (["serve", "--metrics-port", "--1"], 2, "expected one argument"),
        (["serve", "--repository", "/nowhere"], 1, "no such model repository"),
        (["biuld"], 2, "invalid choice: 'biuld'"),
        ([], 2, "required"),
    ],
)
def test_the_command_line_says_how_to_type_it_right(arguments, status, words, capsys):
    try:
        got = main(arguments)
    except SystemExit as stopped:
        got = stopped.code
    assert got == status
    assert words in capsys.readouterr().err


def test_an_engine_this_host_cannot_build_is_an_error_that_says_why(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "tensorrt", ("looprnn.engines.gone", "looprnn[gpu]"))
    assert build(tmp_path, "--spec", variant_file(tmp_path), engine="tensorrt") == 1
    assert "cannot build tensorrt: tensorrt is not installed here" in capsys.readouterr().err


def test_what_is_not_built_here_stands_under_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "looprnn.commands.build.buildable",
        lambda names: ([engines.get("onnxruntime")], {"tensorrt": "type: pip install x[gpu]"}),
    )
    assert build(tmp_path, "--spec", variant_file(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.index("seconds") < said.index("not built here: tensorrt: type: pip install x[gpu]")


def test_one_bad_variant_stops_no_other(tmp_path, capsys):
    variant_file(tmp_path, "a_gone", file="gone.safetensors")
    variant_file(tmp_path, "b_none", hidden_size=0)
    variant_file(tmp_path, "c_good")
    assert build(tmp_path, "--variants", tmp_path) == 1
    out, err = capsys.readouterr()
    rows = [line.split()[:3] for line in out.splitlines()]
    assert [row for row in rows if row[-1:] in (["failed"], ["built"])] == [
        ["a_gone", "-", "failed"],
        ["b_none", "-", "failed"],
        ["c_good", "onnxruntime", "built"],
    ]
    assert "a_gone, -: " in err
    assert "no such weights file" in err
    assert "b_none, -: " in err
    assert "hidden_size must be a whole number of at least 1, got 0" in err
    assert {p.name for p in (tmp_path / "repository").iterdir()} == {"c_good"}


@pytest.mark.parametrize("hidden_size", [10**7, 10**18], ids=["memory", "beyond_numpy"])
def test_a_giant_spec_is_one_line(tmp_path, capsys, hidden_size):
    assert build(tmp_path, "--spec", variant_file(tmp_path, hidden_size=hidden_size)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mine, -: mine: ")
    assert not (tmp_path / "repository").exists()


def test_a_repository_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "repository").write_text("")
    assert build(tmp_path, "--spec", variant_file(tmp_path)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mine, -: ")
    assert str(tmp_path / "repository") in line


def test_a_log_in_a_missing_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.pbtxt").touch()
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    log = tmp_path / "gone/server.log"
    assert main(["serve", "--repository", str(tmp_path), *ports, "--log", str(log)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("FileNotFoundError: ")
    assert str(log) in line


def command(monkeypatch, folder: Path, text: str) -> None:
    """Make `looprnn extra` the module of this text."""
    (folder / "extra_command.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "extra_command", raising=False)
    monkeypatch.setitem(cli.COMMANDS, "extra", ("extra_command", "a test's"))


def test_a_command_whose_library_is_missing_is_one_line(tmp_path, monkeypatch, capsys):
    command(monkeypatch, tmp_path, "import not_installed_anywhere")
    assert main(["extra"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "No module named 'not_installed_anywhere'" in line


def test_a_command_is_one_line_of_the_table(tmp_path, monkeypatch, capsys):
    text = (
        "def add_arguments(parser): parser.add_argument('--n', type=int)\n"
        "def run(options, console):\n"
        "    console.print(options.n, options.repository, options.variants, options.verbose)\n"
        "    return 7\n"
    )
    command(monkeypatch, tmp_path, text)
    assert main(["extra", "--n", "5", "--verbose"], root=Path("r")) == 7
    assert capsys.readouterr().out.split() == ["5", "r/model_repository", "r/variants", "True"]


def test_only_the_command_that_is_typed_is_imported():
    code = (
        "import sys; from looprnn import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "modules = {module for module, _ in cli.COMMANDS.values()}\n"
        "print(modules & set(sys.modules), 'tensorrt' in sys.modules, 'numpy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1].startswith("set() False"), answer.stderr
    for name in cli.COMMANDS:
        assert f"    {name} " in answer.stdout


@pytest.mark.parametrize("main", [main, ask])
def test_the_version_is_said(main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"looprnn(-client)? \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_its_help(name, capsys):
    pytest.importorskip(cli.COMMANDS[name][0])
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "--repository DIR" in capsys.readouterr().out


def test_a_host_that_cannot_serve_hears_so_before_the_demo_builds(tmp_path, monkeypatch, capsys):
    def refuse(scratch):
        raise ServerError("no stub for this Python, says the test")

    monkeypatch.setattr("looprnn.commands.demo.find", refuse)
    arguments = ["--repository", str(tmp_path / "r"), "--spec", str(variant_file(tmp_path))]
    assert main(["demo", *arguments]) == 1
    assert "no stub for this Python, says the test" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


SLEEPER = """
import signal, sys, time
{before}
from looprnn import cli
class Command:
    add_arguments = staticmethod(lambda parser: None)
    @staticmethod
    def run(options, console):
        try:
            print("at it", flush=True)
            time.sleep({seconds})
            return 0
        finally:
            print("left in order", flush=True)
sys.modules["sleeper"] = Command
cli.COMMANDS["sleep"] = ("sleeper", "")
sys.exit(cli.main(["sleep"]))
"""


@pytest.mark.parametrize(
    ("number", "before", "status"),
    [
        (signal.SIGTERM, "", 143),
        (signal.SIGHUP, "", 129),
        (signal.SIGINT, "", 130),
        (signal.SIGHUP, "signal.signal(signal.SIGHUP, signal.SIG_IGN)", 0),
    ],
    ids=["SIGTERM", "SIGHUP", "SIGINT", "nohup"],
)
def test_a_signal_ends_any_command_in_order(number, before, status):
    seconds = 1 if before else 60
    code = SLEEPER.format(before=before, seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "at it\n"
        other.send_signal(number)
        assert other.stdout.read() == "left in order\n"
    assert other.returncode == status


def test_main_gives_the_signals_back():
    before = signal.getsignal(signal.SIGTERM)
    assert main(["serve", "--repository", "/nowhere"]) == 1
    assert signal.getsignal(signal.SIGTERM) is before
