# A guest's triple fault is a crash, with the place where it happened.
# timeout: 600
. /lib/testing.sh
up demo --set 'cmdline="console=ttyS0 quiet reboot=triple"'
tell demo reboot
refuse "triple fault at rip" vmctl wait demo --timeout 60s
is demo crashed
