# shellcheck shell=bash
# What the scripts share: how they talk, stop, measure stages, and install and build what is missing. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# -- talking ----------------------------------------------------------------------------------------------------------
if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    bold=$'\e[1m' red=$'\e[31m' yellow=$'\e[33m' plain=$'\e[0m'
else
    bold='' red='' yellow='' plain=''
fi

step() { printf '%s==> %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '%s    note: %s%s\n' "$yellow" "$*" "$plain"; }
# The cause, then the way out.
fail() {
    printf '%s%s: %s%s\n' "$red" "${0##*/}" "$1" "$plain" >&2
    [ $# -lt 2 ] || printf '  %s\n' "$2" >&2
    exit "${3:-1}"
}

# -- rights -----------------------------------------------------------------------------------------------------------
# Runs a command as root: as we are, or by sudo where that asks nothing (or a person is there to answer).
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        sudo "$@"
    else
        return 126
    fi
}

# -- system packages --------------------------------------------------------------------------------------------------
# need_packages WHAT:PACKAGE…: installs the packages of what is missing, a command or a /file (a pattern), and nothing else.
need_packages() {
    try_packages "$@" || fail "could not install ${missing[*]}" \
        "Run as root: apt-get update && apt-get install -y ${missing[*]} (or by your system's own means), then run this again."
}

# The same, for what can be done without: status 1 where it cannot be installed. Leaves what is missing in $missing.
try_packages() {
    local pair
    missing=()
    for pair in "$@"; do
        case $pair in
            /*) compgen -G "${pair%%:*}" >/dev/null || missing+=("${pair#*:}") ;;
            *) command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || return 1
    step "Installing ${missing[*]}"
    # The lists of a machine that was never updated, or too long ago, do not find the packages.
    apt_install "${missing[@]}" || { as_root apt-get -qq update && apt_install "${missing[@]}"; } || return 1
}
missing=()

# Redis, without a service of it running from then on: Debian's package redis-server starts one, and its program is a link to
# one of redis-tools. Status 1, and $missing, as try_packages.
try_redis() {
    local tools
    tools=$(target_dir)/tools
    [ ! -x "$tools/redis-server" ] || PATH=$PATH:$tools
    ! command -v redis-server >/dev/null || return 0
    try_packages redis-check-rdb:redis-tools || return 1
    mkdir -p "$tools"
    ln -sf "$(command -v redis-check-rdb)" "$tools/redis-server"
    PATH=$PATH:$tools
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# -- Rust -------------------------------------------------------------------------------------------------------------
[ -x "$(command -v cargo)" ] || PATH=$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin

# The compiler, a C compiler for two of the crates, and the crates themselves: from then on no network is needed.
need_rust() {
    need_packages cc:gcc cc:libc6-dev
    command -v cargo >/dev/null ||
        fail "needs Rust $(wanted_rust) or later, and there is no cargo here" "Install it from https://rustup.rs, then run this again."
    local have
    have=$(rustc --version | cut -d' ' -f2)
    printf '%s\n%s\n' "$(wanted_rust)" "$have" | sort -CV ||
        fail "needs Rust $(wanted_rust) or later, and this is $have" "Run: rustup update stable"
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    cd "$root" || return
    if ! cargo fetch --quiet --locked --offline --target "$host" 2>/dev/null; then
        step "Fetching the crates that Overbank is built from"
        cargo fetch --quiet --locked --target "$host" ||
            fail "could not fetch the crates" "Connect to the network once (crates.io, or a registry set in ~/.cargo/config.toml)."
    fi
    export CARGO_NET_OFFLINE=true
}

wanted_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"; }

# What real RDMA devices are built with: the headers of libibverbs, and what reads them. To run, nothing of it is needed.
# shellcheck disable=SC2034  # the scripts that source this use it
rdma_packages=(
    pkg-config:pkg-config /usr/include/infiniband/verbs.h:libibverbs-dev /usr/include/rdma/rdma_cma.h:librdmacm-dev
    '/usr/lib/llvm-*/lib/libclang.so*:libclang-dev'
)

# Where cargo puts what it builds.
target_dir() {
    cargo metadata --format-version 1 --no-deps --manifest-path "$root/Cargo.toml" |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# -- hugepages --------------------------------------------------------------------------------------------------------
huge=/sys/kernel/mm/hugepages/hugepages-2048kB

# The kernel may search for minutes where memory is in pieces: it stops searching at a signal, with what it has found.
set_hugepages() { as_root timeout 30 sh -c "echo $1 >$huge/nr_hugepages" 2>/dev/null || [ $? = 124 ]; }

# Others may have reserved some since: take back as many as were added, not what there was.
hugepages_back() {
    local now
    now=$(<$huge/nr_hugepages)
    set_hugepages "$((now > $1 ? now - $1 : 0))" || warn "could not give $1 hugepages back: echo $((now - $1)) >$huge/nr_hugepages"
}

# -- stages -----------------------------------------------------------------------------------------------------------
# stage NAME COMMAND…: runs it, says how long it took; the status is the command's, 77 where it skipped itself.
stage() {
    local name=$1 start status=0 word
    shift
    step "$name"
    start=$(now_ms)
    "$@" || status=$?
    case $status in 0) word=ok ;; 77) word=skipped ;; *) word="FAILED ($status)" ;; esac
    stages+=("$(printf '%-28s %6s min  %s' "$name" "$(minutes $(($(now_ms) - start)))" "$word")")
    note "$name: $(minutes $(($(now_ms) - start))) min"
    return $status
}
stages=()

now_ms() { date +%s%3N; }
# Milliseconds as minutes with two decimals.
minutes() { printf '%d.%02d' $(($1 / 60000)) $(($1 % 60000 / 600)); }
