# Debian 12's own kernel, unmodified, as a guest.
# kernel: linux-image-cloud-amd64 vmlinuz-6.1
# timeout: 600
. /lib/testing.sh
up demo --set kernel=vmlinuz-6.1
answer demo major=6.1 'echo major=$(uname -r | cut -d. -f1-2)'
tell demo poweroff
expect "guest powered off" vmctl wait demo --timeout 60s
