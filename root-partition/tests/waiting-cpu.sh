# VM 0 uses one CPU of two. The other one waits in guest mode and holds up nothing: a guest gets its memory, runs
# to its end and gives the memory back.
# cpus: 2
# options: maxcpus=1
# timeout: 600
. /lib/testing.sh
[ "$(nproc)" = 1 ] || fail "nproc: $(nproc)"
held=$(partitions)
[ -n "$held" ] || fail "no partitions in: $(vmctl doctor)"
up demo
[ "$(partitions)" != "$held" ] || fail "with a guest: $(partitions)"
vmctl stop demo --wait || fail stop
vmctl delete demo || fail delete
[ "$(partitions)" = "$held" ] || fail "was: $held; is: $(partitions)"
