//! Headers of packets (virtio 1.2 §5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The address of VM 0.
pub(super) const HOST_CID: u64 = 2;
/// The one type of sockets: streams.
const STREAM: u16 = 1;

/// The purpose of a packet.
pub(super) mod operation {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RESET: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const DATA: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a shutdown: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// Flag of a shutdown: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `struct virtio_vsock_hdr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Header {
    /// Address of the sender.
    pub(super) src_cid: U64,
    /// Address of the receiver.
    pub(super) dst_cid: U64,
    /// Port of the sender.
    pub(super) src_port: U32,
    /// Port of the receiver.
    pub(super) dst_port: U32,
    /// Bytes of data behind the header.
    pub(super) len: U32,
    /// Type of the socket.
    pub(super) kind: U16,
    /// One of [`operation`].
    pub(super) operation: U16,
    /// Flags of the operation.
    pub(super) flags: U32,
    /// Bytes that the sender's buffer has room for.
    pub(super) buf_alloc: U32,
    /// Bytes that the sender's buffer has passed on since the connection was made, modulo 2³².
    pub(super) fwd_cnt: U32,
}

/// Bytes of a header.
pub(super) const HEADER: usize = size_of::<Header>();

impl Header {
    /// Returns whether it is about a stream.
    pub(super) fn is_stream(&self) -> bool {
        self.kind.get() == STREAM
    }

    /// Returns a packet without data from a port of VM 0 to a port of the guest.
    pub(super) fn new(cid: u64, ports: Ports, operation: u16) -> Self {
        Self {
            src_cid: HOST_CID.into(),
            dst_cid: cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            kind: STREAM.into(),
            operation: operation.into(),
            ..Self::default()
        }
    }

    /// Returns the answer to a packet that belongs to no connection.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            operation: operation::RESET.into(),
            ..Self::default()
        }
    }

    /// Returns the connection that a packet of the guest belongs to.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            host: self.dst_port.get(),
            guest: self.src_port.get(),
        }
    }
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// Port of VM 0.
    pub(super) host: u32,
    /// Port of the guest.
    pub(super) guest: u32,
}
