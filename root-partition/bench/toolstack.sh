# Starts the programs with which dom0 controls Xen's guests. Each guest is a file NAME.cfg.
export PATH="$PATH:/usr/lib/xen-4.17/bin"
for module in /lib/xen*/*.ko; do
    insmod "$module" || exit 1
done
mkdir -p /proc/xen /etc/xen /run/xen /run/lock /var/lib/xen /var/lib/xenstored /var/log/xen
ln -s /run /var/run
ln -s /run/lock /var/lock
: >/etc/xen/xl.conf
mount -t xenfs xenfs /proc/xen || exit 1
xenstored --pid-file /run/xenstored.pid || exit 1
xen-init-dom0 >&2 || exit 1
xenconsoled --pid-file=/run/xenconsoled.pid || exit 1
# configure NAME TYPE MEMORY OPTIONS...: writes the configuration of a guest with one CPU, which ends when it resets.
configure() {
    name=$1
    printf '%s\n' "name = \"$1\"" "type = \"$2\"" "memory = $3" 'tsc_mode = "native"' 'on_reboot = "destroy"' 'on_crash = "destroy"' >"$1.cfg"
    shift 3
    printf '%s\n' "$@" >>"$name.cfg"
}
