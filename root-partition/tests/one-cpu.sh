# VM 0 on one CPU: runs, and sees the microvisor but no SVM.
[ "$(nproc)" = 1 ] || { echo "nproc: $(nproc)"; exit 1; }
grep -qw svm /proc/cpuinfo && { echo "SVM is visible"; exit 1; }
exit 0
