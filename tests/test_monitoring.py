"""The monitoring profile: its files fit each other, and every metric and label that the dashboard
asks for is in a scrape of a real server. Where Prometheus is installed, it scrapes one and answers.
"""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
import yaml
from conftest import ROOT
from looprnn_client import Client
from test_compose import SERVICES

from looprnn.server import Server, free_ports

FILES = ROOT / "docker/monitoring"
DASHBOARD = json.loads((FILES / "grafana/looprnn.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
SCRAPES_S = 60


def loaded(name):
    return yaml.safe_load((FILES / name).read_text(encoding="utf-8"))


def metrics_of(query):
    """Each metric of a query with the labels that it is filtered or grouped by."""
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", query))))
    for name, filters in re.findall(r"([a-z][a-z0-9_]*)\{([^}]*)\}", query):
        yield name, grouped | set(re.findall(r"(\w+)=~?", filters))


def test_only_loopback_reaches_the_monitoring_services():
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
        assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"]), "not pinned"


def test_every_mounted_file_is_there_and_every_file_is_mounted():
    mounts = [v for name in ("prometheus", "grafana") for v in SERVICES[name]["volumes"]]
    sources = {ROOT / mount.split(":")[0] for mount in mounts}
    assert all(mount.endswith(":ro") for mount in mounts)
    assert sources == {path for path in FILES.rglob("*") if path.is_file()}


def test_the_parts_name_each_other():
    (scrape,) = loaded("prometheus.yml")["scrape_configs"]
    (dns,) = scrape["dns_sd_configs"]
    assert all(name in SERVICES for name in dns["names"])
    for name in dns["names"]:
        assert f"{dns['port']}:{dns['port']}" in map(str, SERVICES[name]["ports"])
    (source,) = loaded("grafana/datasource.yml")["datasources"]
    assert urllib.parse.urlsplit(source["url"]).hostname in SERVICES
    used = {part["datasource"]["uid"] for p in PANELS for part in (p, *p["targets"])}
    assert used == {source["uid"]}
    mounted = [v.split(":")[1] for v in SERVICES["grafana"]["volumes"]]
    (provider,) = loaded("grafana/dashboards.yml")["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted and home.startswith(provider["options"]["path"])


def test_panels_have_titles_and_units_and_do_not_overlap():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert panel["title"] and not cells & taken
        taken |= cells
    assert all(p["fieldConfig"]["defaults"].get("unit") or p["type"] == "table" for p in PANELS)
    assert len({p["id"] for p in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.fixture(scope="module")
def busy(server):
    """A server that has answered, and holds a stream."""
    if not isinstance(server, Server):
        pytest.skip("scrapes the embedded server")
    x = np.ones((1, 4, 7), np.float32)
    with Client(server.grpc, "lstm", timeout_s=60) as client, client.stream() as stream:
        client.infer(x)
        stream.send(x)
        yield server


def scrape(server):
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.live
def test_every_metric_and_label_of_the_dashboard_is_in_a_scrape(busy):
    text = scrape(busy)
    for query in QUERIES:
        found = list(metrics_of(query))
        assert found, f"no metric in {query!r}"
        for name, labels in found:
            lines = re.findall(rf"^{name}\{{(.*)\}} ", text, re.MULTILINE)
            assert lines, f"{name} is not in the scrape"
            has = set(re.findall(r'(\w+)="', lines[0]))
            assert labels <= has, f"{name} has no label {labels - has}"


def test_promtool_finds_nothing_wrong():
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed; type: apt-get install prometheus")
    path = str(FILES / "prometheus.yml")
    subprocess.run([promtool, "check", "config", path], check=True, capture_output=True)


@pytest.mark.live
def test_prometheus_answers_every_query_of_the_dashboard(busy, tmp_path):
    if not (program := shutil.which("prometheus")):
        pytest.skip("Prometheus is not installed; type: apt-get install prometheus")
    config = loaded("prometheus.yml")
    del config["scrape_configs"][0]["dns_sd_configs"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [busy.metrics]}]
    config["global"]["scrape_interval"] = "1s"
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    with (tmp_path / "log").open("w") as log, subprocess.Popen(
        [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/db",
         f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
    ) as process:  # fmt: skip
        try:
            wait_for_scrapes(port)
            x = np.ones((1, 4, 7), np.float32)
            with Client(busy.grpc, "lstm", timeout_s=60) as client:
                client.infer(x)
            for query in QUERIES:
                text = query.replace("$__rate_interval", "1m").replace("$model", "lstm.*")
                answer = ask(port, text)
                assert answer, f"{text} finds nothing"
        finally:
            process.terminate()


def ask(port, query):
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def wait_for_scrapes(port):
    """Three, for a rate needs two."""
    deadline = time.monotonic() + SCRAPES_S
    while time.monotonic() < deadline:
        try:
            found = ask(port, "count_over_time(up[1m]) * up")
            if found and float(found[0]["value"][1]) >= 3:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("Prometheus did not scrape the server")
