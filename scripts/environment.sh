# Sourced by scripts/test, scripts/bench, scripts/docs: finds or makes the virtual environment.
#
# After `prepare_environment` these are set:
#   root    the source tree
#   venv    the environment, with hugepool installed editable and the dev tools
#   state   a writable directory for the caches of the tools
#
# HUGEPOOL_VENV chooses another place for the environment, HUGEPOOL_PYTHON the
# interpreter that makes it.

# Tools such as coreutils must be found even when the caller's PATH is minimal.
PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
export PATH

# A caller's import settings would reach into the environment.
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_USER=no PIP_NO_INPUT=1

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# True for an interpreter that can make the environment: new enough, with venv and pip.
can_make_environment() {
    "$1" -I -c 'import sys; assert sys.version_info >= (3, 11); import ensurepip, venv' \
        >/dev/null 2>&1
}

is_new_enough() {
    "$1" -I -c 'import sys; assert sys.version_info >= (3, 11)' >/dev/null 2>&1
}

find_python() {
    local candidate lacks_venv=""
    for candidate in ${HUGEPOOL_PYTHON:+"$HUGEPOOL_PYTHON"} python3 \
        python3.13 python3.12 python3.11 python3.14 /usr/local/bin/python3 /usr/bin/python3; do
        if can_make_environment "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        if is_new_enough "$candidate"; then
            lacks_venv="$candidate"
        fi
    done
    if [[ -n $lacks_venv ]]; then
        die "$lacks_venv lacks the venv module or pip; on Debian: apt-get install python3-venv"
    fi
    die "needs Python 3.11 or newer on PATH, or in HUGEPOOL_PYTHON"
}

# Another user's tree cannot hold our environment: keep one of our own for it.
choose_place() {
    if [[ -n ${HUGEPOOL_VENV:-} ]]; then
        venv="$HUGEPOOL_VENV"
    elif [[ -w $root ]]; then
        venv="$root/.venv"
    else
        local cache="${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}" tag
        tag="$(printf '%s' "$root" | sha256sum | cut -c1-12)"
        if [[ -z $cache ]] || ! mkdir -p "$cache/hugepool" 2>/dev/null; then
            # A predictable name in a shared directory is ours only if we own it.
            cache="${TMPDIR:-/tmp}/hugepool-$(id -u)-cache"
            mkdir -m 0700 "$cache" 2>/dev/null || [[ -O $cache && ! -L $cache ]] ||
                die "$cache belongs to somebody else; set HUGEPOOL_VENV"
        fi
        mkdir -p "$cache/hugepool"
        venv="$cache/hugepool/venv-$tag"
    fi
    # pip and numba resolve an empty HOME to the root directory.
    if [[ -z ${HOME:-} || ! -w ${HOME:-} ]]; then
        export HOME="$venv/home"
    fi
}

# What the installation depends on: the tree's place, its metadata, the interpreter.
installation_key() {
    { printf '%s\n' "$root" && cat "$root/pyproject.toml" "$venv/pyvenv.cfg"; } |
        sha256sum | cut -d' ' -f1
}

is_installed() {
    [[ -x $venv/bin/python && -r $venv/hugepool-installed ]] &&
        [[ "$(<"$venv/hugepool-installed")" == "$(installation_key)" ]]
}

# The dev group, one requirement a line; read here because pip knows groups only since 25.1.
dev_requirements() {
    "$venv/bin/python" -I - "$root/pyproject.toml" <<'PYTHON'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["dependency-groups"]["dev"], sep="\n")
PYTHON
}

install() {
    if ! is_new_enough "$venv/bin/python"; then
        local python
        python="$(find_python)"
        say "making $venv with $python ..."
        "$python" -m venv --clear "$venv"
    fi
    mkdir -p "$HOME"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$venv/bin/python" -m ensurepip >/dev/null # some tools make environments without pip
    fi
    local requirements
    requirements="$(dev_requirements)"
    local -a requirement
    mapfile -t requirement <<<"$requirements"
    say "installing hugepool and its tools into $venv (once; a minute or more) ..."
    rm -f "$venv/hugepool-installed"
    "$venv/bin/python" -m pip install --quiet --editable "$root[compute,plot,docs]" "${requirement[@]}" ||
        die "pip could not install; its message is above"
    installation_key >"$venv/hugepool-installed"
}

prepare_environment() {
    choose_place
    if ! is_installed; then
        # Two runs at once must not install into one environment. The lock is on
        # the directory of the tree itself, so that no file is left behind.
        exec {lock}<"$root"
        if command -v flock >/dev/null; then
            flock "$lock"
        fi
        is_installed || install
        exec {lock}<&-
    fi
    if [[ -w $venv ]]; then
        state="$venv"
    else
        state="$(mktemp -d)"
        # shellcheck disable=SC2064  # the path as it is now
        trap "rm -rf '$state'" EXIT
    fi
}
