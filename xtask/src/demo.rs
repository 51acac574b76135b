//! The demo guest: what `demo.toml` in VM 0 names.

use std::path::Path;

use crate::archive::Archive;
use crate::files::folder;
use crate::kernel::Kernel;
use crate::{Result, modules, root};

/// Kernel modules of the demo guest: panic notification, power button, virtio devices, VLANs,
/// sockets.
const MODULES: &[&str] = &[
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/char/hw_random/virtio-rng",
    "drivers/char/virtio_console",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "net/llc/llc",
    "net/802/stp",
    "net/802/garp",
    "net/802/mrp",
    "net/8021q/8021q",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
];

/// Puts the configuration, the kernel and the initramfs into `archive`, in `home`.
pub(crate) fn add(
    archive: &mut Archive,
    home: &str,
    kernel: &Kernel,
    busybox: &Path,
) -> Result<()> {
    let sources = root().join("root-partition/initramfs/demo");
    let mut guest = Archive::default();
    guest.file(busybox, "bin/busybox", 0o755);
    guest.file(&sources.join("init"), "init", 0o755);
    guest.file(&sources.join("udhcpc"), "lib/udhcpc", 0o755);
    let console = root().join("root-partition/initramfs/console");
    guest.file(&console, "lib/console", 0o755);
    modules::add(&mut guest, kernel, MODULES)?;
    let initramfs = folder()?.join("demo.cpio");
    guest.write_cached(&initramfs)?;
    archive.file(&initramfs, &format!("{home}/initrd"), 0o644);
    archive.file(&kernel.image, &format!("{home}/vmlinuz"), 0o644);
    archive.file(
        &sources.join("demo.toml"),
        &format!("{home}/demo.toml"),
        0o644,
    );
    Ok(())
}
