# `vmctl doctor` finds everything in its place.
. /lib/testing.sh
for check in "microvisor abi" driver daemon "feature nested-paging"; do
    vmctl doctor | grep "^$check " | grep -q " ok " || fail "$check: $(vmctl doctor)"
done
expect "microvisor: version" vmctl hv-log
expect "microvisor: version" vmctl hv-log --level info
if vmctl hv-log | grep "^<"; then fail "hv-log shows severities"; fi
if vmctl hv-log --level error | grep .; then fail "hv-log --level error shows more than errors"; fi
