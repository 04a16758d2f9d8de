# shellcheck shell=bash
# What the scripts for Slurm share: what they go by, how they talk, and how what a job had is taken back. Sourced, not run.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Those of who started slurmd are not ours.
unset XDG_RUNTIME_DIR LD_PRELOAD LD_LIBRARY_PATH
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/slurm/overbank.conf
. "$here/overbank.conf"

# To the system's log: Slurm keeps nothing of what a prolog or an epilog says.
say() {
    printf 'overbank: %s\n' "$*" >&2
    logger -t overbank-slurm -p daemon.warning -- "$*" 2>/dev/null || true
}

# The end of a prolog or an epilog: a status other than 0 would take the node out of service, with all jobs that need nothing of this.
never_drain() { # STATUS
    [ "$1" = 0 ] || say "the ${0##*/} of job ${SLURM_JOB_ID-} failed (status $1)"
    exit 0
}

is_number() { [[ ${1-} =~ ^(0|[1-9][0-9]{0,9})$ ]]; }

# The job that Slurm names, in $job and $uid. Both become parts of paths and of commands.
this_job() {
    job=${SLURM_JOB_ID-} uid=${SLURM_JOB_UID-}
    is_number "$job" && is_number "$uid"
}

# The command, as an identity's home, with a limit of its own: it ends even where the auth daemon does not answer, and first says so.
as() { # HOME ARGUMENT…
    timeout --kill-after=5 $((request + 1)) "$overbank" --authd "$authd" --request-deadline "${request}s" --home "$@"
}

# Takes away the directory that a job's user writes to, and what is left of others. A process of that user that has a directory in it
# open can go on filling that.
put_away() { # JOB
    local gone
    if [ -e "$run/$1" ] && gone=$(mktemp -d "$run/.gone.XXXXXX"); then
        # To where only root comes by a path.
        mv -T "$run/$1" "$gone/$1" || true
    fi
    set -- "$1" "${run:?}/$1" "$run"/.gone.*
    ! timeout "$request" rm -rf --one-file-system "${@:2}" 2>/dev/null || return 0
    # Each directory becomes root's before it is read: from then on nobody puts anything into it.
    timeout $((wait + request)) find "${@:2}" -xdev -type d -execdir chown -h root: {} \; -execdir chmod 700 {} \; 2>/dev/null || true
    timeout "$request" rm -rf --one-file-system "${@:2}" || say "job $1: not all of its directory in $run could be removed; the next epilog tries"
}

# Ends what a job has: nothing new, leases released, receipts, the identity revoked. Status 1 where it is to be tried again: all that
# it takes is still in $state then.
reclaim() { # JOB
    local job=$1 dir=$state/$1 uid gid tenant fingerprint lease state_of late="" until
    [ -e "$dir/over" ] || : >"$dir/over"
    # What root's prolog left is a word to a job that goes without.
    if [ ! -O "$run/$job" ] || [ ! -e "$run/$job/refused" ]; then put_away "$job"; fi
    if ! read -r uid gid tenant fingerprint <"$dir/job"; then
        [ ! -s "$dir/job" ] || { say "job $job: $dir/job cannot be read, and what the job had is not taken back"; return 1; }
        # Nothing was asked for in its name yet.
        rm -rf "$dir"
        return 0
    fi
    # Nothing new, whoever is left to ask for it. Where that cannot be had, it ends with the identity.
    as "$operator" tenant quota "$tenant" --leases 0 >/dev/null 2>"$dir/error" || true
    mkdir -p "$dir/out"
    until=$((SECONDS + wait + request))
    timeout --kill-after=5 $((wait + request + 1)) "$overbank" --authd "$authd" --request-deadline "${request}s" --home "$dir/home" \
        lease release --all --receipts "$dir/out" --wait "${wait}s" >/dev/null 2>"$dir/error" || true
    # However that went: who is revoked has no lease any more, and whoever followed it is revoked with it.
    as "$operator" trust revoke "$fingerprint" >/dev/null 2>"$dir/error" || grep -q 'not in the trust store' "$dir/error" ||
        { trouble "$dir"; return 1; }
    # What came late, and what a successor had: leases that are listed and have no receipt here.
    as "$operator" lease list >"$dir/list" 2>"$dir/error" || { trouble "$dir"; return 1; }
    while read -r lease state_of; do
        [[ $state_of != lost* && ! -e $dir/out/$lease.receipt ]] || continue
        # Each is asked for once at least, while the auth daemon answers.
        until as "$operator" lease receipt "$lease" --out "$dir/out/$lease.receipt" </dev/null >/dev/null 2>"$dir/error"; do
            [ $SECONDS -lt $until ] || { late=1; break; }
            sleep 1
        done
        [ $SECONDS -lt $((until + request)) ] || { late=1; break; }
    done < <(leases_of "$tenant" "$dir/list")
    [ -z "$late" ] || has_waited "$dir" || { trouble "$dir"; return 1; }
    as "$operator" tenant quota "$tenant" --bytes default --leases default >/dev/null 2>"$dir/error" || { trouble "$dir"; return 1; }
    report "$job" "$dir" "$uid" "$gid" "$tenant" "$fingerprint" || return 1
    rm -rf "$dir"
}

# Each lease of a tenant, and its state.
leases_of() { # TENANT LIST
    awk -F '  +' -v tenant="$1" 'NR > 1 && $5 == tenant { print $1, $3 }' "$2"
}

# Whether receipts have been waited for long enough: an hour.
has_waited() { [ -n "$(find "$1/over" -mmin +60)" ]; }

trouble() { # DIRECTORY
    say "job ${1##*/}: what it had is not all taken back yet, which is tried again: $(head -c 500 "$1/error" | tr '\n' ' ')"
}

# Leaves the receipts, each checked, and a line on each, to the job's user. A job that ran before under this number keeps its own.
report() { # JOB DIRECTORY UID GID TENANT FINGERPRINT
    local place=$spool/$1 n=1 file count=0 bad=0 none=0 lease state_of
    install -d -m 711 "$spool"
    until mkdir -m 700 "$place" 2>/dev/null; do
        n=$((n + 1)) place=$spool/$1.$n
        [ $n -lt 1000 ] || { say "job $1: cannot make $place for its receipts"; return 1; }
    done
    {
        printf 'job %s of user %s on %s, tenant %s, identity %s\n' "$1" "$3" "${SLURMD_NODENAME-$(uname -n)}" "$5" "$6"
        for file in "$2"/out/*.receipt; do
            [ -e "$file" ] || continue
            cp "$file" "$place/" || { say "job $1: cannot keep its receipts in $place"; rm -rf "$place"; return 1; }
            if timeout --kill-after=5 "$request" "$overbank" receipt verify "$file" >"$2/said" 2>&1; then
                count=$((count + 1))
                printf '%s: wiped, says %s\n' "$(basename "$file" .receipt)" "$(sed -nE 's/^signed by +([0-9a-f]{40}).*/\1/p' "$2/said")"
            else
                bad=$((bad + 1))
                printf '%s: %s\n' "$(basename "$file" .receipt)" "$(head -c 500 "$2/said" | tr '\n' ' ')"
            fi
        done
        # Its provider died, and nobody is left to say what became of it; or it was not to be had for too long.
        while read -r lease state_of; do
            [ ! -e "$2/out/$lease.receipt" ] || continue
            none=$((none + 1))
            printf '%s: no receipt, it is %s\n' "$lease" "$state_of"
        done < <(leases_of "$5" "$2/list")
        printf '%s receipts hold, %s do not, %s leases have none\n' "$count" "$bad" "$none"
    } >"$place/report" || { say "job $1: cannot write $place/report"; rm -rf "$place"; return 1; }
    chmod 400 "$place"/*
    chmod 500 "$place"
    chown -R "$3:$4" "$place"
    [ "$bad$none" = 00 ] || say "job $1: $bad of its receipts do not hold, $none leases have none: see $place/report"
}

# Nobody else sees to this job's end, or gives it anything, until this script ends.
lock() { # DIRECTORY [OPTION-OF-FLOCK…]
    exec 9<"$1" && flock "${@:2}" 9 && [ -e "$1" ]
} 2>/dev/null

# Jobs that ended without being seen to: the auth daemon was away, or this machine stopped. Where there is nothing in $run the job is
# over, or its prolog is at work.
leftovers() {
    local dir
    for dir in "$state"/*/; do
        dir=${dir%/}
        is_number "${dir##*/}" || continue
        if [ -e "$dir/over" ] || { [ ! -e "$run/${dir##*/}" ] && [ -n "$(find "$dir" -maxdepth 0 -mmin +10)" ]; }; then
            printf '%s\n' "${dir##*/}"
        fi
    done
}

# Reclaims what is left over, for so many seconds. Status 1 where some is still.
sweep() { # SECONDS
    local left wait=2 until=$((SECONDS + $1)) status=0
    for left in $(leftovers); do
        [ $SECONDS -lt $until ] || return 1
        ! lock "$state/$left" -n || reclaim "$left" || status=1
    done
    return $status
}
