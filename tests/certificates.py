"""Certificates for the tests, of a throwaway authority."""

from __future__ import annotations

import subprocess
from pathlib import Path

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


def make_certificates(folder: Path) -> None:
    """Write ca.pem, server.crt and client.crt with their keys, server.pem (all three parts), and other.pem: another
    authority that nobody knows."""
    openssl(folder, f"req -x509 {KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=throwaway")
    openssl(folder, f"req -x509 {KEY} -keyout other.key -out other.pem -days 2 -subj /CN=other")
    for name, subject in (("server", "localhost"), ("client", "layerwatch")):
        request = f"req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={subject}"
        openssl(folder, f"{request} -addext subjectAltName=DNS:localhost,IP:127.0.0.1")
        sign = "-CA ca.pem -CAkey ca.key -days 2 -copy_extensions copy"
        openssl(folder, f"x509 -req -in {name}.csr {sign} -out {name}.crt")
    parts = [(folder / name).read_text() for name in ("server.key", "server.crt", "ca.pem")]
    (folder / "server.pem").write_text("".join(parts))


def openssl(folder: Path, command: str) -> None:
    """Run it there."""
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
