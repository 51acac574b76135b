# A GRUB ISO boots VM 0 on BIOS by Multiboot 2, with its command line, on every CPU.
# boot: iso
. /lib/testing.sh
grep -q 'console=ttyS0' /proc/cmdline || fail "command line: $(cat /proc/cmdline)"
grep -q placeholder /proc/cmdline && fail "the first word is in the command line"
[ "$(nproc)" = 2 ] || fail "nproc: $(nproc)"
[ -e /dev/microvisor ] || fail "no /dev/microvisor"
exit 0
