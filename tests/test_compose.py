"""The GPU profile cannot run without a GPU: it is held so like the cpu profile that running that
one tells.
"""

import re
import sys

import yaml
from conftest import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]


def like_the_cpus(service: dict) -> dict:
    """The GPU service with the three things replaced in which the profiles may differ."""
    text = yaml.safe_dump({k: v for k, v in service.items() if k not in ("deploy", "build")})
    for gpu, cpu in (
        ("image: looprnn\n", "image: looprnn-cpu\n"),
        ("engines:/", "engines-cpu:/"),
        ("--server triton", "--server triton-cpu"),
        ("--require tensorrt", "--require onnxruntime"),
        ("--engine tensorrt", "--engine onnxruntime"),
        ("  triton:", "  triton-cpu:"),
        ("  build:", "  build-cpu:"),
    ):
        text = text.replace(gpu, cpu)
    return {**yaml.safe_load(text), "profiles": ["cpu"]}


def test_the_two_profiles_differ_in_image_volume_and_names_only():
    for name in ("build", "triton", "test"):
        cpu = {k: v for k, v in SERVICES[f"{name}-cpu"].items() if k != "build"}
        assert like_the_cpus(SERVICES[name]) == cpu


def test_only_the_gpu_services_ask_for_a_gpu_and_have_no_profile():
    for name in ("build", "triton", "test"):
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert "profiles" not in SERVICES[name]
        assert "deploy" not in SERVICES[f"{name}-cpu"]


def test_the_server_is_ready_before_the_tests_ask():
    assert (
        SERVICES["triton"]["depends_on"]["build"]["condition"] == "service_completed_successfully"
    )
    assert SERVICES["test"]["depends_on"]["triton"]["condition"] == "service_healthy"
    assert "/v2/health/ready" in SERVICES["triton"]["healthcheck"]["test"]


def test_versions_are_build_arguments_with_the_dockerfiles_defaults():
    for name, dockerfile in (("test", "Dockerfile"), ("test-cpu", "cpu.Dockerfile")):
        text = (ROOT / "docker" / dockerfile).read_text(encoding="utf-8")
        for argument, value in SERVICES[name]["build"]["args"].items():
            default = value.split(":-")[1].rstrip("}")
            assert f"ARG {argument}={default}\n" in text
            assert value == f"${{{argument}:-{default}}}"


def test_the_gpu_image_installs_what_its_tests_import():
    text = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    command = SERVICES["test"]["command"]
    needed = {"numpy", "pytest", "hypothesis", "onnx", "onnxruntime"}
    for name in (*re.findall(r"tests/\w+\.py", command), "tests/conftest.py", "tests/cases.py"):
        imported = re.findall(r"^(?:from|import) (\w+)", (ROOT / name).read_text(), re.MULTILINE)
        here = {p.stem for p in (ROOT / "tests").glob("*.py")} | {"looprnn", "looprnn_client"}
        needed |= {m for m in imported if m not in here and m not in sys.stdlib_module_names}
    for module in needed:
        assert re.search(rf"\b{module}\b", text), f"the GPU image lacks {module}"
