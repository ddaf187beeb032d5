#!/bin/sh
# A guided tour: starts a cluster of three stores and eight regions in one process and walks through it with etcdctl.
#
#   docs/operations/tour.sh BRAID [DATA_DIR]
#
# ETCDCTL             the client, if it is not `etcdctl` on the PATH
# BRAID_LISTEN_CLIENT_URLS  where the cluster listens, if port 2379 is taken
# BRAID_TOUR=once     stop the cluster after the tour instead of keeping it
set -eu

braid=$1
data=${2:-braid-dev-data}
etcdctl=${ETCDCTL:-etcdctl}
endpoint=${BRAID_LISTEN_CLIENT_URLS:-http://127.0.0.1:2379}
export ETCDCTL_API=3
unset ETCDCTL_ENDPOINTS

say() {
    printf '\n# %s\n' "$*"
}


ctl() {
    printf '$ etcdctl %s\n' "$*"
    "$etcdctl" --endpoints="$endpoint" "$@"
}

admin() {
    printf '$ braid admin %s\n' "$*"
    "$braid" admin --endpoints="$endpoint" "$@"
}

say "One process, three stores, every region on all three, data in $data"
printf '$ braid dev --stores 3 --regions 8 --data-dir %s\n' "$data"
"$braid" dev --stores 3 --regions 8 --data-dir "$data" &
pid=$!
trap 'kill $pid 2>/dev/null; wait $pid' EXIT
# Ctrl-C reaches braid too: only wait for it, since a second signal would end it at once.
trap 'trap - EXIT; wait $pid; exit 130' INT
trap 'exit 143' TERM

tries=0
until "$etcdctl" --endpoints="$endpoint" --command-timeout=2s endpoint health >/dev/null 2>&1; do
    kill -0 $pid 2>/dev/null || { wait $pid || exit $?; exit 1; }
    tries=$((tries + 1))
    [ $tries -lt 60 ] || { echo "tour: the cluster does not get healthy" >&2; exit 1; }
    sleep 0.5
done

say "Put and get, as with etcd: one revision for every change, over all regions"
ctl put /app/color green
ctl put zebra striped
ctl get /app/color
ctl get zebra --write-out=fields

say "A prefix, a limit, a range over every region, newest first"
for pod in a b c d e; do
    "$etcdctl" --endpoints="$endpoint" put "/registry/pods/default/$pod" "pod $pod" >/dev/null
done
ctl get /registry/pods/ --prefix --limit=2
ctl get '' --from-key --keys-only --order=DESCEND --sort-by=MODIFY

say "A transaction: only if the color is still green"
printf '$ etcdctl txn <<.\n'
txn='value("/app/color") = "green"

put /app/color blue

get /app/color

'
printf '%s.\n' "$txn"
printf '%s' "$txn" | "$etcdctl" --endpoints="$endpoint" txn

say "The past: the color as it was at its first revision"
first=$("$etcdctl" --endpoints="$endpoint" get /app/color --write-out=fields | sed -n 's/^"CreateRevision" : //p')
ctl get /app/color --rev="$first"

say "Delete"
ctl del zebra

say "What etcd does not have: where the keys are"
admin store list
admin region list

say "Cut a region in two while it serves"
if "$braid" admin --endpoints="$endpoint" region list --output json | grep -q '"key": "/registry/pods/default/c"'; then
    echo "(already cut by an earlier tour)"
else
    admin region split --key /registry/pods/default/c
fi
ctl get /registry/pods/ --prefix --keys-only

if [ "${BRAID_TOUR:-}" = once ]; then
    say "Done"
    exit 0
fi
say "The cluster keeps running; Ctrl-C stops it, the next start finds its data. Try it from another terminal:"
echo "etcdctl --endpoints=$endpoint get / --prefix"
trap 'trap - EXIT; wait $pid; exit 0' INT
wait $pid
