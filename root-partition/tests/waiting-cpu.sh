# VM 0 uses one CPU of two. The other one waits in guest mode and holds up nothing: a guest gets its memory, runs
# to its end and gives the memory back.
# cpus: 2
# options: maxcpus=1
# timeout: 600
. /lib/testing.sh
partitions() { vmctl doctor --format json | grep -o '[0-9]* partitions with [^"]*'; }
[ "$(nproc)" = 1 ] || fail "nproc: $(nproc)"
before=$(partitions)
[ -n "$before" ] || fail "no partitions in: $(vmctl doctor)"
vmctl create demo.toml >/dev/null || fail create
vmctl start demo || fail start
eventually 240 printed demo 'demo guest: up'
[ "$(partitions)" != "$before" ] || fail "with a guest: $(partitions)"
vmctl stop demo --wait || fail stop
vmctl delete demo || fail delete
[ "$(partitions)" = "$before" ] || fail "was: $before; is: $(partitions)"
