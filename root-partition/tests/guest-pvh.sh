# The ELF file inside of the stock kernel boots by PVH.
# vmlinux: vmlinux
# timeout: 600
. /lib/testing.sh
up demo --set kernel=vmlinux
tell demo poweroff
expect "guest powered off" vmctl wait demo --timeout 60s
