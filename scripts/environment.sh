# Sourced by demo.sh and test.sh: makes .venv (once, and again when what it depends on has changed).
# Usage: . scripts/environment.sh EXTRAS   (for example: demo,dev)

say() { printf '\n== %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "Error: Python 3.11 or newer was not found. Install it (Debian: apt-get install python3 python3-venv)" \
        "or name one: PYTHON=/path/to/python $0" >&2
    return 1
}

make_environment() {
    local extras=$1 python stamp wanted
    python=$(find_python)
    wanted="$extras $("$python" -c 'import sys; print(sys.version_info[:3])') $(cat pyproject.toml setup.py constraints.txt | cksum)"
    stamp=.venv/.prismcap-installed
    if [ -f "$stamp" ] && grep -qxF "$wanted" "$stamp" && .venv/bin/python -c '' 2>/dev/null; then
        return
    fi
    say "Making .venv with $("$python" --version) (extras: $extras; the first time downloads some gigabytes)"
    # an environment without pip is one that was interrupted, or made where python3-venv was missing
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! "$python" -m venv --clear .venv; then
        echo "Error: no virtual environment could be made (Debian: apt-get install python3-venv)." >&2
        return 1
    fi
    install_locked pip setuptools wheel
    install_locked torch torchvision
    # the lock holds for the build too: an isolated build would take whatever setuptools is newest
    install_locked --no-build-isolation -e ".[$extras]"
    # every set of extras that was installed stays valid: demo and tests share the environment
    touch "$stamp"
    grep -qxF "$wanted" "$stamp" || printf '%s\n' "$wanted" >>"$stamp"
}

# pip at the versions of constraints.txt. On a terminal as it is, since pip draws no progress bar into a pipe;
# into a log without a line for each package that is there already
install_locked() {
    local install=(.venv/bin/python -m pip install --disable-pip-version-check --no-warn-script-location)
    install+=(-c constraints.txt "$@")
    if [ -t 1 ]; then
        "${install[@]}"
    else
        "${install[@]}" | { grep -v '^Requirement already satisfied' || true; }
    fi
}

# Tux Paint's stamps come through apt-get; a fresh machine has no package lists yet, and only root may fetch them
fetch_stamps() {
    prismcap fetch stamps && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Fetching the package lists (apt-get update), then the stamps again"
        apt-get update -qq && prismcap fetch stamps
    else
        echo "If the package lists are missing: sudo apt-get update" >&2
        return 1
    fi
}
