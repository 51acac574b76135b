# The same ISO boots VM 0 on UEFI, where the ACPI tables are found by the loader's tag only.
# boot: uefi
. /lib/testing.sh
[ "$(nproc)" = 2 ] || fail "nproc: $(nproc)"
dmesg | grep -q 'ACPI: RSDP .*MVISOR' || fail "no ACPI tables of the microvisor's"
[ -e /dev/microvisor ] || fail "no /dev/microvisor"
exit 0
