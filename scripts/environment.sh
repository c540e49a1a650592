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
    wanted="$extras $("$python" -c 'import sys; print(sys.version)') $(cat pyproject.toml setup.py constraints.txt | cksum)"
    stamp=.venv/.prismcap-installed
    if [ -f "$stamp" ] && grep -qxF "$wanted" "$stamp"; then
        return
    fi
    say "Making .venv with $("$python" --version) (extras: $extras; the first time takes some minutes)"
    if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
        echo "Error: no virtual environment could be made (Debian: apt-get install python3-venv)." >&2
        return 1
    fi
    .venv/bin/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
    .venv/bin/python -m pip install --quiet -c constraints.txt torch torchvision
    .venv/bin/python -m pip install --quiet -c constraints.txt -e ".[$extras]"
    # every set of extras that was installed stays valid: demo and tests share the environment
    touch "$stamp"
    grep -qxF "$wanted" "$stamp" || printf '%s\n' "$wanted" >>"$stamp"
}
