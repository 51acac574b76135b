# Debian 12 from an image of `vmctl image build`, on a thin clone: systemd comes up without a failed unit, `stop` ends the guest
# cleanly, and files that were synced are there after the worker was killed.
# long: yes
# debian: yes
# timeout: 1500
. /lib/testing.sh
. /lib/debian.sh
clone web
debian web
answer web state=running 'echo state=$(systemctl is-system-running --wait)'
answer web failed=0 'echo failed=$(systemctl --failed --no-legend | wc -l)'
answer web id=virtio-root 'echo id=$(basename $(ls /dev/disk/by-id/virtio-root))'

# udev finds a disk that comes and goes.
vmctl disk create data.qcow2 1G >/dev/null || fail "no image"
expect "web: disk data attached" vmctl attach web disk data.qcow2 --set serial=DATA
tell web 'until [ -e /dev/disk/by-id/virtio-DATA ]; do sleep 0.1; done; mkfs.ext4 -q /dev/disk/by-id/virtio-DATA && mount /dev/disk/by-id/virtio-DATA /mnt && cp /boot/vmlinuz* /mnt && umount /mnt && echo us""ed'
eventually 60 printed web '^used.$'
expect "web: data detached" vmctl detach web data
answer web gone 'udevadm settle; [ ! -e /dev/disk/by-id/virtio-DATA ] && echo gone'

tell web 'seq 100000 >/root/synced && sync && echo all""synced'
eventually 60 printed web '^allsynced.$'
tell web 'seq 200000 >/root/not-synced; echo writ""ten'
eventually 60 printed web '^written.$'
worker=$(worker web)
kill -KILL "$worker"
refuse "web: crashed (worker died: signal 9)" vmctl wait web --timeout 30s
debian web
answer web "sum=$(seq 100000 | md5sum | cut -d' ' -f1)" 'echo sum=$(md5sum </root/synced | cut -d" " -f1)'
answer web state=running 'echo state=$(systemctl is-system-running --wait)'
expect "web: stopped (guest powered off)" vmctl stop web --timeout 120s
expect "No errors were found" tool qemu-img check /mnt/web.qcow2
expect "No errors were found" tool qemu-img check /mnt/debian.qcow2
