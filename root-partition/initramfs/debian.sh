# For test scripts with `debian: yes`: `. /lib/debian.sh` mounts the images, and starts guests of them.

mkdir -p /images /debian
mount -t ext4 /dev/vdb /images || fail "no disk with images"
mount -t ext4 -o ro /dev/vdc /debian || fail "no disk with Debian's programs"
mount -o bind /images /debian/mnt || fail "no images for Debian's programs"
mount -o bind /dev /debian/dev
mount -t proc proc /debian/proc
cd /images || exit 1

# tool COMMAND...: a program of Debian's, which finds /images as /mnt.
tool() {
    chroot /debian "$@"
}

# clone NAME [OPTION...]: defines a VM on a thin clone of the Debian image.
clone() {
    name=$1
    shift
    expect "created" vmctl disk clone debian.qcow2 "$name.qcow2"
    sed "s/\"debian\"/\"$name\"/; s/debian.qcow2/$name.qcow2/" debian.toml >"$name.toml"
    expect "$name: defined" vmctl create "$name.toml" "$@"
}

# debian NAME: starts a Debian guest and logs in on its console, for `tell` and `answer`.
debian() {
    before=$(count "$1" 'login: ')
    expect "$1: running" vmctl start "$1" --wait --timeout 60s
    log_in "$1" $((before + 1))
}

# log_in NAME COUNT: logs in on a guest's console when it prompts for the COUNTth time since it was defined.
log_in() {
    hold "$1"
    eventually 600 printed_often "$1" "$2" 'login: '
    # There is no prompt for a password: root has none.
    tell "$1" root
    eventually 120 printed_often "$1" "$2" 'root@.*# '
    # Answers are to be lines of their own: bash would put its prompt and marks for pasted text before
    # them. The last mark is on the line that the empty one ends.
    tell "$1" 'exec env TERM=dumb PS1= sh'
    tell "$1" 'stty -echo; echo'
}
