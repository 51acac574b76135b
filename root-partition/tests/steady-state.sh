# VM 0 costs no exits: none on an idle machine, none under load, but for what measuring costs.
. /lib/testing.sh
busy() {
    while :; do :; done &
    while :; do dd if=/dev/vda of=/dev/null bs=64k count=256 iflag=direct 2>/dev/null; done &
    ping -i 0.2 10.0.2.2 >/dev/null &
}
# A row of root's: 0, "root", "cpuN", use of the CPU, use by guests, exits per second.
check() {
    vmctl top -b -i 5s >/tmp/top || fail "vmctl top: $(cat /tmp/top)"
    [ "$(awk '$1 == 0' /tmp/top | wc -l)" = "$(nproc)" ] || fail "$1: $(cat /tmp/top)"
    # vmctl's own calls come twice in the five seconds.
    awk '$1 == 0 && $6 > 2 { bad = 1 } END { exit bad }' /tmp/top || fail "$1: $(cat /tmp/top)"
}
sleep 3
check idle
busy
sleep 2
check busy
