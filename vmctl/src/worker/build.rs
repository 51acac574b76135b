//! Makes a partition of a configuration: its memory, kernel, tables, virtual CPUs and doorbells.
//!
//! Everything that can fail for the user's reasons (files, sizes) is looked at before the
//! partition exists. What fails afterwards takes the partition with it: [`NewVm::destroy`].

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use guest_proto::ABI_VERSION;
use guest_proto::hypercall::{MachineInfo, Property};
use log::info;

use super::clock::Clock;
use super::cpuid::{self, Cpuid};
use super::devices::{Devices, Facts};
use super::end::End;
use super::event::Event;
use super::loader::{Boot, Entry, Initrd, Kernel};
use super::memory::{self, Ram};
use super::virtio::transport::Transport;
use super::virtio::vhost::Vhost;
use super::virtio::vsock::Vsock;
use super::virtio::{Device as Virtio, block::Block, console::Console, entropy::Entropy, net::Net};
use super::vm::{self, Vm};
use super::{acpi, devices, disks, firmware, nics};
use crate::config::{ConsoleDevice, DiskConfig, NicConfig, VmConfig, VsockConfig};
use crate::disk::Image;
use crate::driver::page::Ring;
use crate::driver::{Device, DriverError, Partition, Vcpu};
use crate::nic::Opened;

/// The device by which root's kernel serves socket devices.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// The files that a VM starts from, opened and checked.
#[derive(Debug)]
pub(super) struct Images {
    kernel: Kernel,
    initrd: Option<Initrd>,
    disks: Vec<Image>,
    nics: Vec<Opened>,
    vsock: Option<UnixListener>,
}

impl Images {
    /// Opens them, and checks that there is memory for the VM. Programs of VM 0 connect to `vsock`.
    pub(super) fn open(config: &VmConfig, vsock: Option<UnixListener>) -> Result<Self, End> {
        let kernel = Kernel::open(&config.kernel).map_err(End::start_failed)?;
        let initrd = match &config.initrd {
            Some(path) => Some(Initrd::open(path).map_err(End::start_failed)?),
            None => None,
        };
        let disks = disks::open(config)?;
        memory::check_available(config.memory).map_err(End::start_failed)?;
        let nics = nics::open(config)?;
        Ok(Self {
            kernel,
            initrd,
            disks,
            nics,
            vsock,
        })
    }
}

/// A partition that was made, and is empty. The device is closed again: it reaches other partitions.
#[derive(Debug)]
pub(super) struct NewVm {
    partition: Partition,
    tsc_khz: u64,
    microvisor: MachineInfo,
    clock: Clock,
}

/// A partition that can run.
#[derive(Debug)]
pub(super) struct Built {
    /// The state that the threads share.
    pub(super) vm: Vm,
    /// The virtual CPUs in order.
    pub(super) vcpus: Vec<Vcpu>,
    /// The guest's clock.
    pub(super) clock: Clock,
}

/// The parts of a partition that can run.
#[derive(Debug)]
struct Parts {
    ram: Ram,
    wake: Arc<Event>,
    vcpus: Vec<Vcpu>,
    rings: Vec<Ring>,
    facts: Facts,
}

impl NewVm {
    /// Makes it.
    pub(super) fn create(path: &Path, name: &str) -> Result<Self, End> {
        let device = Device::open(path).map_err(|e| {
            let hint = match e.kind() {
                io::ErrorKind::NotFound => ": the driver is not loaded",
                _ => "",
            };
            End::start_failed(format_args!("{}: {e}{hint}", path.display()))
        })?;
        let (info, microvisor) = device.info().map_err(End::start_failed)?;
        if info.driver_abi >> 16 != ABI_VERSION >> 16 {
            return Err(End::start_failed(format_args!(
                "the driver has ABI version {:#x}, this vmctl has {ABI_VERSION:#x}",
                info.driver_abi
            )));
        }
        // The guest's TSC counts from here on.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        let partition = device
            .create_partition(name, 0)
            .map_err(End::start_failed)?;
        Ok(Self {
            partition,
            tsc_khz: info.tsc_khz,
            microvisor,
            clock: Clock::new(info.tsc_khz, now),
        })
    }

    /// Returns the partition's id.
    pub(super) fn id(&self) -> u64 {
        self.partition.id()
    }

    /// Gives it all that it needs to run.
    pub(super) fn build(self, config: &VmConfig, mut images: Images) -> Result<Built, End> {
        let disks = std::mem::take(&mut images.disks);
        let nics = std::mem::take(&mut images.nics);
        let vsock = images.vsock.take();
        let parts = match self.parts(config, images) {
            Ok(parts) => parts,
            Err(end) => {
                self.destroy();
                return Err(end);
            }
        };
        let clock = self.clock;
        let vm = Vm::new(self.partition, parts.ram, parts.rings, parts.wake);
        vm.device_state().devices.set_facts(parts.facts);
        if let Err(end) = plug(&vm, config, disks, nics, vsock) {
            drop(parts.vcpus);
            vm.destroy();
            return Err(end);
        }
        Ok(Built {
            vm,
            vcpus: parts.vcpus,
            clock,
        })
    }

    fn parts(&self, config: &VmConfig, images: Images) -> Result<Parts, End> {
        let x2apic = images.kernel.wants_x2apic();
        self.set_properties(x2apic).map_err(End::start_failed)?;
        let ram = Ram::new(config.memory)
            .map_err(|e| End::start_failed(format_args!("guest memory: {e}")))?;
        ram.register(&self.partition).map_err(End::start_failed)?;
        let (entry, facts) = load(config, images, &ram)?;
        let wake = Event::new().map(Arc::new);
        let wake = wake.map_err(|e| End::start_failed(format_args!("event descriptor: {e}")))?;
        self.bind(&wake).map_err(End::start_failed)?;
        let (vcpus, rings) = self
            .make_vcpus(config.vcpus, &entry)
            .map_err(End::start_failed)?;
        Ok(Parts {
            ram,
            wake,
            vcpus,
            rings,
            facts,
        })
    }

    fn set_properties(&self, x2apic: bool) -> Result<(), DriverError> {
        let partition = &self.partition;
        partition.set_property(Property::TscKhz, self.tsc_khz)?;
        partition.set_property(Property::X2Apic, u64::from(x2apic))
    }

    /// Has writes to COM1's data register posted. Writes to its other registers are not: two CPUs
    /// that enable and disable its interrupts need their order.
    fn bind(&self, wake: &Event) -> Result<(), DriverError> {
        self.partition
            .doorbell(devices::port::SERIAL, 1, devices::SERIAL_TAG, wake.as_fd())?;
        self.partition.eoi_eventfd(wake.as_fd())
    }

    /// Makes all virtual CPUs and sets the first one to the kernel's entry; the others wait for
    /// its SIPI.
    fn make_vcpus(&self, count: u32, entry: &Entry) -> Result<(Vec<Vcpu>, Vec<Ring>), DriverError> {
        let cpuid = Cpuid::here(&cpuid::Facts {
            partition: self.partition.id(),
            vcpus: count,
            tsc_khz: self.tsc_khz,
            abi_version: self.microvisor.abi_version,
            features: self.microvisor.features,
        });
        let (mut vcpus, mut rings) = (Vec::new(), Vec::new());
        for index in 0..count {
            let (mut vcpu, ring) = self.partition.vcpu(index)?;
            vcpu.set_cpuid(&cpuid.of(index))?;
            if index == 0 {
                let mut state = vcpu.fetch_state()?;
                entry.apply(&mut state);
                vcpu.store_state(&state)?;
            }
            vcpus.push(vcpu);
            rings.push(ring);
        }
        Ok((vcpus, rings))
    }

    /// Gives everything back.
    pub(super) fn destroy(self) {
        vm::destroy(&self.partition);
    }
}

/// Puts the VM's devices onto the PCI bus.
fn plug(
    vm: &Vm,
    config: &VmConfig,
    images: Vec<Image>,
    nics: Vec<Opened>,
    vsock: Option<UnixListener>,
) -> Result<(), End> {
    let insert = |devices: &mut Devices, slot, device| devices.pci().insert(slot, device);
    let count = config.disks.len();
    for (disk, image) in config.disks.iter().zip(images) {
        let options = disks::options(disk, config.vcpus, count, !nics.is_empty());
        let block = Block::new(image, options, Arc::clone(&vm.stalls));
        vm.plugs.add(block.monitor());
        put(vm, Box::new(block), insert).map_err(End::start_failed)?;
    }
    for (nic, opened) in config.nics.iter().zip(nics) {
        let net = make_nic(vm, nic, opened);
        vm.plugs.add_nic(net.monitor());
        put(vm, Box::new(net), insert).map_err(End::start_failed)?;
    }
    put(vm, Box::new(Entropy), insert).map_err(End::start_failed)?;
    if config.console.device == ConsoleDevice::Virtio {
        let port = vm.make_port();
        let port = port.map_err(|e| End::start_failed(format_args!("console: {e}")))?;
        put(vm, Box::new(Console::new(port)), insert).map_err(End::start_failed)?;
    }
    if let Some(vsock_config) = &config.vsock {
        let device = make_vsock(vm, vsock_config, vsock);
        let device = device.map_err(|e| End::start_failed(format_args!("vsock: {e}")))?;
        put(vm, Box::new(device), insert).map_err(End::start_failed)?;
    }
    Ok(())
}

/// Error: the VM can't have a device.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlugError {
    /// The bus is full.
    #[error("the PCI bus has no free slot")]
    NoSlot,
    /// The device of this name has no doorbells.
    #[error("{0}: {1}")]
    Transport(String, io::Error),
}

/// Error: the VM can't have its socket device.
#[derive(Debug, thiserror::Error)]
enum VsockError {
    #[error("there is no socket")]
    NoSocket,
    #[error("{0}")]
    Sockets(io::Error),
    #[error("{VHOST_VSOCK}: {0}")]
    NoVhost(io::Error),
    #[error("cid {0}: another VM has this address")]
    CidTaken(u64),
    #[error("cid {0}: {1}")]
    Cid(u64, io::Error),
}

/// Adds a disk while the VM runs.
///
/// # Errors
///
/// Fails with [`PlugError`].
pub(super) fn plug_disk(vm: &Vm, disk: &DiskConfig, image: Image) -> Result<(), PlugError> {
    let count = vm.plugs.count_disks() + 1;
    let has_nics = vm.plugs.has_nics();
    let options = disks::options(disk, vm.vcpus(), count, has_nics);
    let block = Block::new(image, options, Arc::clone(&vm.stalls));
    let monitor = block.monitor();
    put(vm, Box::new(block), Devices::plug)?;
    vm.plugs.add(monitor);
    Ok(())
}

/// Adds a network card while the VM runs.
///
/// # Errors
///
/// Fails with [`PlugError`].
pub(super) fn plug_nic(vm: &Vm, nic: &NicConfig, opened: Opened) -> Result<(), PlugError> {
    let net = make_nic(vm, nic, opened);
    let monitor = net.monitor();
    put(vm, Box::new(net), Devices::plug)?;
    vm.plugs.add_nic(monitor);
    Ok(())
}

fn make_nic(vm: &Vm, nic: &NicConfig, opened: Opened) -> Net {
    let memory = vm.ram.mapping().clone();
    Net::new(opened.tap, opened.vhosts, nics::options(nic), memory)
}

/// Makes a socket device. Where the worker serves it, programs of VM 0 connect to `listener`.
fn make_vsock(
    vm: &Vm,
    config: &VsockConfig,
    listener: Option<UnixListener>,
) -> Result<Vsock, VsockError> {
    let cid = config.cid().into();
    if !config.vhost {
        let listener = listener.ok_or(VsockError::NoSocket)?;
        let mux = vm.make_sockets(cid, listener);
        return mux.map(Vsock::Worker).map_err(VsockError::Sockets);
    }
    let fd = crate::nic::open_vhost(VHOST_VSOCK).map_err(VsockError::NoVhost)?;
    let vhost = Vhost::new(fd, Arc::new(vm.ram.mapping().clone()));
    vhost.set_guest_cid(cid).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => VsockError::CidTaken(cid),
        _ => VsockError::Cid(cid, e),
    })?;
    Ok(Vsock::Kernel {
        cid,
        vhost: Arc::new(vhost),
    })
}

/// Puts a device into a free slot by `insert`.
fn put(
    vm: &Vm,
    device: Box<dyn Virtio>,
    insert: impl FnOnce(&mut Devices, u8, Box<Transport>),
) -> Result<(), PlugError> {
    let mut device_state = vm.device_state();
    let slot = device_state.devices.pci().free_slot();
    let slot = slot.ok_or(PlugError::NoSlot)?;
    let name = device.name().to_owned();
    let transport = Transport::new(slot, device, vm.ram.mapping().clone(), vm.wake_event());
    let transport = transport.map_err(|e| PlugError::Transport(name, e))?;
    insert(&mut device_state.devices, slot, Box::new(transport));
    vm.settle(device_state);
    Ok(())
}

/// Loads the kernel. Returns how it is entered, and what it is told of itself.
fn load(config: &VmConfig, images: Images, ram: &Ram) -> Result<(Entry, Facts), End> {
    let (tables, rsdp) = firmware::write(ram)
        .and_then(|()| acpi::write(ram, config.vcpus))
        .map_err(|e| End::start_failed(format_args!("firmware tables: {e}")))?;
    let mut kernel = images.kernel;
    let mut boot = Boot {
        cmdline: config.cmdline(),
        initrd: images.initrd,
        rsdp,
    };
    let entry = kernel.load(ram, &mut boot).map_err(End::start_failed)?;
    let kind = kernel.describe();
    info!("{}: {kind} kernel loaded", config.name);
    let failed = |e| End::start_failed(format_args!("kernel: {e}"));
    let root_pointer = tables[..acpi::RSDP_SIZE].to_vec();
    let facts = Facts {
        cpus: config.vcpus,
        memory: config.memory,
        cmdline: config.cmdline().to_owned(),
        kernel: Some(kernel.into_parts().map_err(failed)?),
        initrd: boot
            .initrd
            .map(Initrd::into_part)
            .transpose()
            .map_err(failed)?,
        acpi: Some((tables, root_pointer)),
    };
    Ok((entry, facts))
}
