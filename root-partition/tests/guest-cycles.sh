# 50 times created, started, killed and deleted: no process, descriptor, partition or memory is left.
# timeout: 1200
. /lib/testing.sh
daemon=$(pidof vmctl)
once() {
    vmctl create demo.toml --set memory=128M >/dev/null || fail create
    vmctl start demo --wait >/dev/null || fail start
    vmctl kill demo >/dev/null || fail kill
    vmctl delete demo >/dev/null || fail delete
}
# Linux does not count as free what its CPUs keep at hand, which is megabytes, more or less.
free() {
    echo 3 >/proc/sys/vm/drop_caches
    awk '/MemFree/ { kib += $2 } $1 == "count:" { kib += 4 * $2 } END { print kib }' /proc/meminfo /proc/zoneinfo
}
# What is made once and kept is not counted.
once
once
fds=$(ls /proc/$daemon/fd | wc -l)
processes=$(ps | grep -vc '\[')
held=$(partitions)
[ -n "$held" ] || fail "no partitions in: $(vmctl doctor)"
memory=$(free)
for _ in $(seq 50); do
    once
done
[ "$(ls /proc/$daemon/fd | wc -l)" = "$fds" ] || fail "descriptors: $(ls -l /proc/$daemon/fd)"
[ "$(ps | grep -vc '\[')" = "$processes" ] || fail "processes: $(ps | grep -v '\[')"
[ "$(partitions)" = "$held" ] || fail "was: $held; is: $(partitions)"
left=$((memory - $(free)))
# A guest has 128 MiB, some of which it has touched.
[ "$left" -lt 4096 ] || fail "$left KiB of memory less than before"
