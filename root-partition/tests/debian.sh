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
