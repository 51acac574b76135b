# VM 0 reboots the machine, which starts the microvisor and VM 0 again: by the chipset's reset, then by a
# triple fault. The disk tells how often.
# reboots: yes
. /lib/testing.sh
[ "$(nproc)" = 2 ] || fail "nproc: $(nproc)"
case "$(head -c 6 /dev/vda)" in
second) next=third. way=triple ;;
third.) exit 0 ;;
*) next=second way=acpi ;;
esac
printf $next | dd of=/dev/vda conv=fsync 2>/dev/null || fail "writing"
echo $way >/sys/kernel/reboot/type || fail "no choice of the way to reboot"
reboot -f
