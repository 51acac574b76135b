# The memory that a guest takes of root, its RAM and the microvisor's metadata, is its worker's memory cgroup's.
# timeout: 600
. /lib/testing.sh
group=/sys/fs/cgroup/vms
[ -d /sys/fs/cgroup ] || mkdir /sys/fs/cgroup
grep -q cgroup2 /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup || fail mount
echo +memory >/sys/fs/cgroup/cgroup.subtree_control || fail "no memory controller"
mkdir $group
# Its workers inherit the daemon's cgroup.
pidof vmctl >$group/cgroup.procs || fail "the daemon does not move"
of() { awk -v key="$1" '$1 == key { print $2 }' $group/memory.stat; }
kernel=$(of kernel) ram=$(of shmem)
up demo
# The first block of metadata of a guest of 256 MiB has 1 MiB, and nothing else is as large; the guest touches
# 64 MiB at least.
[ $(($(of kernel) - kernel)) -ge 1048576 ] || fail "kernel memory: $kernel, then $(of kernel); $(partitions)"
[ $(($(of shmem) - ram)) -ge 67108864 ] || fail "RAM: $ram, then $(of shmem)"
vmctl kill demo >/dev/null || fail kill
