# On a CPU without SVM, `vmctl doctor` says that the microvisor cannot run there.
# bare: yes
# cpu: EPYC-Milan,svm=off
. /lib/testing.sh
refuse "no AMD-V (SVM)" vmctl doctor
