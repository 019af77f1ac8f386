"""What docs/metrics.md promises, scraped from a real tritonserver."""

import re
import urllib.request

import pytest
from conftest import ROOT, VARIANTS
from looprnn_client import Client
from test_server import wait_until

from looprnn import parity
from looprnn.build import build_variant, buildable
from looprnn.server import Server

SPEC = VARIANTS["padded_gru"]
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    build_variant(SPEC, buildable(["onnxruntime"])[0], folder, progress=lambda *_: None)
    with Server(folder) as running:
        yield running


def scrape(server) -> dict[tuple[str, ...], float]:
    """Name and labels but those every metric has → value; looprnn's own."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^(looprnn_\w+){(.*)} (\S+)$", text, re.MULTILINE):
        every = dict(re.findall(r'(\w+)="(.*?)"', labels))
        assert every.pop("model") == SPEC.name
        assert every.pop("version") == "1"
        assert every.pop("instance") == f"{SPEC.name}_0_0"
        found[name, *every.values()] = float(value)
    return found


def documented() -> set[str]:
    names = set()
    for row in re.findall(r"^\| (`looprnn_.*?) \|", PAGE, re.MULTILINE):
        first, *more = re.findall(r"`(.*?)`", row)
        names |= {first, *(first.removesuffix("_bucket") + part for part in more)}
    return names


def test_every_documented_metric_is_served_and_no_other(server):
    assert {name for name, *_ in scrape(server)} == documented()


def test_a_request_is_counted_with_its_rows_and_its_time(server):
    before = scrape(server)
    with Client(server.grpc, model=SPEC.name, timeout_s=30) as client:
        client.infer(parity.draw_inputs(SPEC, 5, 3)["input"])

    def grew(*key):
        return scrape(server)[key] - before[key]

    wait_until(lambda: grew("looprnn_batch_rows_bucket", "+Inf") >= 1, "it was never counted")
    wait_until(lambda: grew("looprnn_engine_seconds_count") >= 1, "it was never counted")
    assert grew("looprnn_engine_seconds_sum") > 0
    assert scrape(server)["looprnn_padding_waste_sum",] == 0
    assert scrape(server)["looprnn_engine_info", "onnxruntime"] == 1
    rows = scrape(server)
    assert rows["looprnn_batch_rows_bucket", "8"] > rows["looprnn_batch_rows_bucket", "4"]
