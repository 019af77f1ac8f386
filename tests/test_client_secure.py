"""TLS on real sockets: a tritonserver's gRPC with certificates, and HTTPS before its answers."""

import shutil
import ssl
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from client_both import clients
from client_doubling import Doubling
from looprnn_client import TLS, BadInput, Client, Unreachable, list_models
from looprnn_client.cli import main
from slow_model import write_repository
from test_client_wire import http_server

from looprnn.server import Server

X = np.random.default_rng(5).uniform(-1, 1, (2, 50, 3)).astype(np.float32)


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """ca.pem, and server and client certificates that it signed, with their keys.

    By the openssl program: a package for it would be one more dependency of the tests.
    """
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *key, "-days", 2, "-subj", f"/CN=looprnn test {name}",
                "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem",
                "-addext", "basicConstraints=critical,CA:TRUE",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    for name in ("server", "client"):
        request, extra = folder / f"{name}.csr", folder / f"{name}.ext"
        extra.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n"
                         "authorityKeyIdentifier=keyid\n")  # fmt: skip
        openssl("req", "-new", *key, "-subj", f"/CN={name}",
                "-keyout", folder / f"{name}.key", "-out", request)  # fmt: skip
        openssl("x509", "-req", "-in", request, "-CA", folder / "ca.pem",
                "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", 2,
                "-extfile", extra, "-out", folder / f"{name}.pem")  # fmt: skip
    return folder


class SecureServer(Server):
    """A tritonserver whose gRPC wants TLS, and a certificate of the client."""

    def __init__(self, repository, folder):
        super().__init__(repository)
        self.folder = folder

    def _command(self, installed):
        return [
            *super()._command(installed),
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={self.folder / 'server.pem'}",
            f"--grpc-server-key={self.folder / 'server.key'}",
            f"--grpc-root-cert={self.folder / 'ca.pem'}",
        ]


@pytest.fixture(scope="module")
def secure_url(certificates, tmp_path_factory):
    """grpcs:// of a real tritonserver, https:// of a real TLS socket before Triton's answers."""
    repository = write_repository(tmp_path_factory.mktemp("secure"))
    with SecureServer(repository, certificates) as triton, https(certificates) as port:
        yield {"grpc": f"grpcs://{triton.grpc}", "http": f"https://127.0.0.1:{port}"}


@contextmanager
def https(folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with http_server(Doubling, wrap=context) as port:
        yield port


def identity(folder, roots="ca"):
    return TLS(
        root_certificates=folder / f"{roots}.pem",
        certificate=folder / "client.pem",
        private_key=folder / "client.key",
    )


@pytest.mark.live
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_answers_over_tls(secure_url, certificates, protocol, kind):
    tls = identity(certificates)
    with (
        clients(kind) as connect,
        connect(secure_url[protocol], "double", timeout_s=20, tls=tls) as client,
    ):
        np.testing.assert_allclose(client.infer(X).output, 2 * X, rtol=0, atol=1e-6)


@pytest.mark.live
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_models_listed_over_tls(secure_url, certificates, protocol):
    (found,) = list_models(secure_url[protocol], timeout_s=20, tls=identity(certificates))
    assert (found.name, found.state) == ("double", "READY")


@pytest.mark.live
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.parametrize("wrong", ["stranger_signed_it", "no_certificate_of_ours", "no_roots"])
def test_certificates_that_do_not_do(secure_url, certificates, protocol, kind, wrong):
    tls = {
        "stranger_signed_it": identity(certificates, roots="stranger"),
        "no_certificate_of_ours": TLS(root_certificates=certificates / "ca.pem"),
        "no_roots": None,
    }[wrong]
    with (
        clients(kind) as connect,
        connect(secure_url[protocol], "double", timeout_s=20, tls=tls) as client,
        pytest.raises(Unreachable),
    ):
        client.infer(X)


@pytest.mark.live
def test_plain_client_at_a_secure_port(secure_url):
    url = secure_url["grpc"].replace("grpcs", "grpc")
    with Client(url, "double", timeout_s=20) as client, pytest.raises(Unreachable):
        client.infer(X)


@pytest.mark.live
@pytest.mark.parametrize(("scheme", "port"), [("grpcs", "grpc"), ("https", "http")])
def test_secure_client_at_a_plain_port_says_how_to_write_it(summing, scheme, port):
    address = getattr(summing, port)
    words = f"If it speaks no TLS, write {port}://{address}"
    with (
        Client(f"{scheme}://{address}", "sum_stream", timeout_s=20) as client,
        pytest.raises(Unreachable, match=words),
    ):
        client.infer(X)


def test_tls_to_a_plain_address(tmp_path):
    (tmp_path / "ca.pem").write_text("")
    tls = TLS(root_certificates=tmp_path / "ca.pem")
    with pytest.raises(BadInput, match="write grpcs://localhost:8001"):
        Client("localhost:8001", "double", timeout_s=1, tls=tls)


def test_certificate_that_is_none(tmp_path):
    with pytest.raises(BadInput, match="there is no such file"):
        TLS(root_certificates=tmp_path / "none.pem")
    with pytest.raises(BadInput, match="together"):
        TLS(certificate=__file__)
    (tmp_path / "ca.pem").write_text("not a certificate")
    tls = TLS(root_certificates=tmp_path / "ca.pem")
    with pytest.raises(BadInput, match="cannot be used"):
        Client("https://localhost:8001", "double", timeout_s=1, tls=tls)


@pytest.mark.live
@pytest.mark.parametrize("protocol", ["grpc", "https"])
def test_the_command_over_tls_with_a_token(secure_url, certificates, tmp_path, capsys, protocol):
    url = secure_url[protocol.removesuffix("s")]
    names = {"ca": "ca.pem", "certificate": "client.pem", "key": "client.key"}
    secure = [w for k, name in names.items() for w in (f"--{k}", str(certificates / name))]
    words = ["--url", url, "--timeout", "20", "--header", "Authorization: Bearer t:1", *secure]
    assert main(["models", *words]) == 0
    assert "double" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", np.ones((1, 50, 3), np.float32))
    files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npz")]
    assert main(["infer", *words, "--model", "double", *files]) == 0
    with np.load(tmp_path / "y.npz") as got:
        np.testing.assert_array_equal(got["output"], np.full((1, 50, 3), 2))
    if protocol == "https":
        sent = {name.lower(): value for name, value in Doubling.seen[-1].items()}
        assert sent["authorization"] == "Bearer t:1"
    assert main(["models", *words[:4], "--certificate", words[-3]]) == 1
    assert "certificate and private_key together" in capsys.readouterr().err
