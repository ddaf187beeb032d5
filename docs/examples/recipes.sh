#!/bin/sh
# Service discovery and a distributed lock with nothing but etcdctl.
#
#   docs/examples/recipes.sh          against $ENDPOINTS, or where `braid dev` listens by default
set -eu

endpoints=${ENDPOINTS:-http://127.0.0.1:2379}
etcdctl=${ETCDCTL:-etcdctl}
export ETCDCTL_API=3
unset ETCDCTL_ENDPOINTS

ctl() {
    "$etcdctl" --endpoints="$endpoints" "$@"
}

echo "# service discovery: an instance is a key with a lease, and whoever keeps the lease alive is there"
lease=$(ctl lease grant 2 | cut -d' ' -f2)
ctl put services/api/10.0.0.1:80 up --lease="$lease" >/dev/null
# Not through ctl: what is killed below must be etcdctl itself, and not a shell that waits for it.
"$etcdctl" --endpoints="$endpoints" lease keep-alive "$lease" >/dev/null &
keeper=$!
trap 'kill $keeper 2>/dev/null' EXIT
echo "known: $(ctl get --prefix --keys-only services/api/ | tr -d '\n')"

# The watch begins at the next revision, so that it cannot miss the end; a pipe of its own, so that it can be ended.
room=$(mktemp -d)
mkfifo "$room/events"
next=$(($(ctl get services -w fields | sed -n 's/^"Revision" : //p') + 1))
"$etcdctl" --endpoints="$endpoints" watch --prefix services/api/ --rev="$next" >"$room/events" &
watcher=$!
trap 'kill $keeper $watcher 2>/dev/null || true; rm -rf "$room"' EXIT
kill -9 "$keeper"
echo "nobody keeps it alive any more"
sed -n '/^DELETE$/{n;s/^/gone: /p;q;}' <"$room/events"
kill "$watcher"
echo "known: $(ctl get --prefix --keys-only services/api/ | tr -d '\n')"

echo "# a lock: three at once, one after the other"
for name in one two three; do
    # shellcheck disable=SC2016 # the inner shell expands them
    ctl lock locks/room -- sh -c 'mkdir "$1/in" && rmdir "$1/in" && echo "$2 was alone"' sh "$room" "$name" &
    others="${others:-} $!"
done
for other in $others; do
    wait "$other"
done
