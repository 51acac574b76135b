# `vmctl run` with a pipe for a terminal: the guest's console both ways, until it powers off.
# timeout: 600
. /lib/testing.sh
mkfifo /tmp/typing
vmctl run demo.toml </tmp/typing >/tmp/console 2>&1 &
run=$!
exec 3>/tmp/typing
eventually 240 grep -q 'demo guest: up' /tmp/console
echo 'echo sum=$((40 + 2))' >&3
eventually 60 grep -q 'sum=42' /tmp/console
echo poweroff >&3
wait $run || fail "vmctl run: status $?: $(cat /tmp/console)"
grep Error /tmp/console && fail "the guest's kernel finds a fault in its devices"
is demo "stopped guest powered off"
