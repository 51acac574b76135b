# `vmctl doctor` finds everything in its place.
. /lib/testing.sh
for check in "microvisor abi" driver daemon "feature nested-paging"; do
    vmctl doctor | grep "^$check " | grep -q " ok " || fail "$check: $(vmctl doctor)"
done
expect "microvisor: version" vmctl hv-log
