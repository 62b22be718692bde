"""The installer: uv is given what pip is configured with, and pip takes over where uv fails."""

import os
import subprocess
import sys

import pytest

from cirlib.app import install
from cirlib.app.install import PIP, read_settings, uv_options

CONFIGURATION = """
[global]
index-url = https://mirror.example/simple
extra-index-url =
    https://user:word@one.example/simple
    file:///two/simple
find-links = /wheels /more
cert = /etc/certificates.crt
[install]
constraint = /etc/constraints.txt
"""


def test_a_pip_configuration_is_given_to_uv_and_the_environment_wins(tmp_path):
    (tmp_path / "pip.conf").write_text(CONFIGURATION)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    clean |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_DEFAULT_TIMEOUT": "180"}
    clean |= {"PIP_FIND_LINKS": "/own /others"}
    shown = subprocess.run([*PIP, "config", "list"], env=clean, capture_output=True, text=True, check=True).stdout
    variables, arguments = uv_options(read_settings(shown.splitlines()))
    assert variables == {
        "UV_INDEX_URL": "https://mirror.example/simple",
        "UV_EXTRA_INDEX_URL": "https://user:word@one.example/simple file:///two/simple",
        "UV_FIND_LINKS": "/own,/others",
        "SSL_CERT_FILE": "/etc/certificates.crt",
        "UV_HTTP_TIMEOUT": "180",
    }
    assert arguments == ["--constraint", "/etc/constraints.txt"]


def test_without_a_configuration_uv_is_given_nothing():
    assert uv_options(read_settings([])) == ({}, [])


@pytest.mark.parametrize(
    ("uv", "works", "said"),
    [
        ("/bin/uv", "/bin/uv", ""),
        ("/bin/uv", sys.executable, "uv could not install this"),
        (None, sys.executable, "uv cannot be had"),
    ],
)
def test_pip_installs_where_uv_cannot(monkeypatch, capsys, uv, works, said):
    ran = []

    def run(command: list[str], variables: object = None) -> bool:
        ran.append(command)
        return command[0] == works

    monkeypatch.setattr(install, "_find_uv", lambda: uv)
    monkeypatch.setattr(install, "_run", run)
    monkeypatch.setattr(sys, "argv", ["install", "cpu", "dev"])
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, stdout=""))
    try:
        install.main()
    except SystemExit as end:
        assert not end.code
    assert [command[0] for command in ran] == list(dict.fromkeys(filter(None, [uv, works])))
    assert all(command[-4:] == ["--constraint", "requirements.lock", "--editable", ".[cpu,dev]"] for command in ran)
    assert said in capsys.readouterr().out
