# A guest's root file system is on its disk, made by busybox's mke2fs, and keeps what is written to it: an initial RAM disk
# loads the disk's driver and mounts it, as that of a distribution does.
. /lib/testing.sh
vmctl disk create root.raw 16M >/dev/null
mkdir early && cd early || exit 1
cpio -i <../initrd 2>/dev/null || fail "the initial RAM disk does not unpack"
mv init demo-init
cat >init <<'EOF'
#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
while read -r module; do
    insmod "/lib/modules/$module"
done </lib/modules/order
if ! mount -t ext4 /dev/vda /new 2>/dev/null; then
    mke2fs -L root /dev/vda >/dev/null && mount -t ext4 /dev/vda /new
    mkdir -p /new/bin /new/lib/modules
    cp /bin/busybox /new/bin && cp /lib/console /new/lib && cp /demo-init /new/init
    # The modules are loaded already.
    : >/new/lib/modules/order
fi
umount /proc
exec switch_root /new /init
EOF
chmod +x init
find . | cpio -o -H newc >../early.cpio 2>/dev/null || fail "no initial RAM disk"
cd ..
{
    sed 's/"initrd"/"early.cpio"/' demo.toml
    printf '[[disk]]\npath = "root.raw"\n'
} >root.toml
expect "demo: defined" vmctl create root.toml
start demo
answer demo root=/dev/vda,ext4 'echo root=$(grep " / ext4" /proc/mounts | cut -d" " -f1,3 | tr " " ,)'
tell demo 'seq 1000 >/root/numbers; poweroff'
expect "guest powered off" vmctl wait demo --timeout 60s
start demo
answer demo "sum=$(seq 1000 | md5sum | cut -c 1-8)" 'echo sum=$(md5sum </root/numbers | cut -c 1-8)'
expect "demo: stopped (guest powered off)" vmctl stop demo --timeout 60s
