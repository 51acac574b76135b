# Root's kernel maps the microvisor's memory when asked, but a read of it faults.
# cpus: 4
. /lib/testing.sh
[ "$(nproc)" = 4 ] || fail "nproc: $(nproc)"
devmem 0x20000 32 >/dev/null || fail "reserved low memory is not readable"
devmem 0x400000 32 && fail "the image is readable"
dmesg | grep -q 'devmem.*general protection' || fail "no #GP"
