"""Installs the project and the packages pinned in requirements.lock: with uv where it can be had, else with pip.

``python -m cirlib.app.install cpu dev`` installs it with these extras into the Python that runs it, which has only pip.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from os import environ
from pathlib import Path

SETTINGS = {  # pip's setting → uv's variable, and what separates several values there
    "index-url": ("UV_INDEX_URL", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "proxy": ("ALL_PROXY", " "),
}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def read_settings(lines: Iterable[str]) -> dict[str, list[str]]:
    """What ``pip config list`` says: setting → its values; the environment's win over those of files, as in pip.

    >>> read_settings(["global.find-links='/a /b'", ":env:.find-links='/c'", "install.no-index='true'"])
    {'find-links': ['/c'], 'no-index': ['true']}
    """
    sections = ("global", "install", ":env:")  # the last one wins
    found: dict[tuple[int, str], list[str]] = {}
    for line in lines:
        place, _, value = line.partition("=")
        section, _, name = place.rpartition(".")
        if section in sections:
            found[sections.index(section), name.removeprefix("default-")] = ast.literal_eval(value).split()
    return {name: values for (_, name), values in sorted(found.items())}


def uv_options(settings: Mapping[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """The same for uv: variables, which also keep passwords in addresses from other users, and arguments.

    >>> uv_options({"extra-index-url": ["https://a/simple", "https://b/simple"], "constraint": ["own.txt"]})
    ({'UV_EXTRA_INDEX_URL': 'https://a/simple https://b/simple'}, ['--constraint', 'own.txt'])
    """
    known = {name: values for name, values in settings.items() if name in SETTINGS}
    variables = {SETTINGS[name][0]: SETTINGS[name][1].join(values) for name, values in known.items()}
    arguments = [word for file in settings.get("constraint", []) for word in ("--constraint", file)]
    return variables, arguments + ["--no-index"] * (settings.get("no-index", ["0"])[0] in ("1", "true", "yes", "on"))


def _find_uv() -> str | None:
    """The uv on the path, or one that pip puts beside this Python."""
    own = Path(sys.executable).with_name("uv")
    if not (found := shutil.which("uv")) and not own.is_file():
        subprocess.run([*PIP, "install", "--quiet", "uv"], stderr=subprocess.DEVNULL)
    return found or (str(own) if own.is_file() else None)


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> bool:
    """Runs an installer and shows what it says, but for the packages one by one; True: it succeeded."""
    environment = {**(variables or {}), **environ}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout or ():
            if not line.startswith((" + ", " - ", " ~ ", "Requirement already", "Collecting ", "  Using cached ")):
                print(line, end="", flush=True)
    return run.returncode == 0


def main() -> None:
    """Installs; ends with the installer's own words and exit code 1 where neither uv nor pip can."""
    extras = sys.argv[1:]
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    variables, arguments = uv_options(read_settings(listed.splitlines()))
    other = {"cpu": "faiss-gpu", "gpu": "faiss-cpu"}[extras[0]]
    found = subprocess.run([*PIP, "show", "--quiet", other], stderr=subprocess.DEVNULL)
    if found.returncode == 0:  # both provide the one module faiss
        subprocess.run([*PIP, "uninstall", "--quiet", "--yes", "faiss-cpu", "faiss-gpu"], check=True)
    wanted = ["--constraint", "requirements.lock", "--editable", f".[{','.join(extras)}]"]
    if uv := _find_uv():
        command = [uv, "pip", "install", "--python", sys.executable, "--index-strategy", "unsafe-best-match"]  # as pip
        if _run([*command, *arguments, *wanted], variables):
            return
        print("uv could not install this (see above): trying pip, which takes some minutes", flush=True)
    else:
        print("uv cannot be had: pip installs, which takes some minutes", flush=True)
    sys.exit(not _run([*PIP, "install", *wanted]))


if __name__ == "__main__":
    main()
