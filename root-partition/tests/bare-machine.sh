# Without the microvisor below, `vmctl` says that it is missing, and does nothing.
# bare: yes
. /lib/testing.sh
refuse "not under Microvisor" vmctl doctor
insmod /lib/modules/microvisor.ko 2>/dev/null && fail "the driver loads"
refuse "daemon" vmctl list
