"""Where a server is and how to speak to it: its address, TLS, headers, compression."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from looprnn_client.errors import BadInput

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
COMPRESSIONS = (None, "gzip", "deflate")
SCHEMES = ("grpc", "grpcs", "http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """The certificates of a `grpcs://` or `https://` connection, each the path of a PEM file.

    root_certificates: who is trusted to have signed the server's; None is this host's usual ones.
    certificate, private_key: the client's own, where the server asks for one; both or neither.
    """

    root_certificates: str | Path | None = None
    certificate: str | Path | None = None
    private_key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise BadInput("TLS needs certificate and private_key together: they are one identity")
        for name in self.__slots__:
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise BadInput(f"TLS({name}={str(path)!r}): there is no such file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One server's address and how every call to it travels."""

    scheme: str
    address: str
    headers: Headers | None = None
    compression: str | None = None
    tls: TLS | None = None

    @property
    def secure(self) -> bool:
        return self.scheme in ("grpcs", "https")

    @property
    def grpc(self) -> bool:
        return self.scheme.startswith("grpc")

    def metadata(self) -> dict[str, str]:
        """The headers of the next call: asked for each time, since tokens expire."""
        given = self.headers() if callable(self.headers) else self.headers
        return {} if given is None else {name.lower(): value for name, value in given.items()}


def line(
    url: str,
    *,
    headers: Headers | None = None,
    compression: str | None = None,
    tls: TLS | None = None,
) -> Line:
    """The line to `host:port`, `grpc://…`, `grpcs://…`, `http://…` or `https://…`; opens nothing.

    Raises BadInput for an address or an option that cannot be used.
    """
    scheme, address = parse(url)
    if compression not in COMPRESSIONS:
        raise BadInput(f"compression must be one of {COMPRESSIONS}, got {compression!r}")
    if tls is not None and scheme not in ("grpcs", "https"):
        raise BadInput(f"tls was given, but {url!r} is not encrypted; write {scheme}s://{address}")
    if headers is not None and not callable(headers):
        bad = [n for n, v in headers.items() if not (isinstance(n, str) and isinstance(v, str))]
        if bad:
            raise BadInput(f"headers must be strings to strings, got {bad[0]!r} among them")
    if scheme in ("grpcs", "https"):
        context(tls)  # gRPC would only log what is wrong with a certificate, and call on
    return Line(scheme=scheme, address=address, headers=headers, compression=compression, tls=tls)


def context(tls: TLS | None) -> ssl.SSLContext:
    """For a connection of ours. Raises BadInput for a certificate that cannot be used."""
    tls = tls or TLS()
    try:
        made = ssl.create_default_context(cafile=tls.root_certificates)
        if tls.certificate is not None:
            made.load_cert_chain(tls.certificate, tls.private_key)
    except OSError as error:  # ssl.SSLError is one
        raise BadInput(f"{tls}: what the files hold cannot be used: {error}") from error
    return made


def parse(url: str) -> tuple[str, str]:
    """(scheme, "host:port"). Raises BadInput."""
    wanted = (
        "write localhost:8001 or grpc://localhost:8001 for gRPC, http://localhost:8000 for HTTP, "
        "grpcs:// or https:// for TLS"
    )
    if not isinstance(url, str):
        raise BadInput(f"the server's address must be a string, got {url!r}; {wanted}")
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"{url!r} is not an address ({error}); {wanted}") from error
    if parts.scheme not in SCHEMES:
        raise BadInput(
            f"{url!r} asks for {parts.scheme!r}, which this client cannot speak; {wanted}"
        )
    if not host or not port:
        raise BadInput(f"{url!r} names no {'port' if host else 'host'}; {wanted}")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise BadInput(f"{url!r} says more than a host and a port; {wanted}")
    return parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
