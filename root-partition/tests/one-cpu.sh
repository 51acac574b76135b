# VM 0 on one CPU runs, and sees no SVM.
# cpus: 1
. /lib/testing.sh
[ "$(nproc)" = 1 ] || fail "nproc: $(nproc)"
grep -qw svm /proc/cpuinfo && fail "SVM is visible"
exit 0
