//! A netlink socket (`netlink(7)`): one request at a time, and its answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send,
    socket_with,
};

/// The kernel fills a datagram of a dump up to 32 KiB, or as far as its reader's buffer goes.
const BUFFER: usize = 64 << 10;
/// Bytes of a message's header: length, type, flags, sequence, sender.
const HEADER: usize = 16;
/// The group of interfaces: `RTMGRP_LINK`.
const LINKS: u32 = 1;
/// The group of packet filters: `NFNLGRP_NFTABLES`, the seventh.
const FILTERS: u32 = 1 << 6;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A socket that the kernel tells of each change of some kind.
#[derive(Debug)]
pub(super) struct Changes(OwnedFd);

impl Changes {
    /// Changes of interfaces.
    pub(super) fn of_links() -> io::Result<Self> {
        // No protocol is number 0, which is NETLINK_ROUTE.
        Self::open(None, LINKS)
    }

    /// Changes of packet filters.
    pub(super) fn of_filters() -> io::Result<Self> {
        Self::open(Some(NETFILTER), FILTERS)
    }

    fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(fd))
    }

    /// Forgets what it was told. Returns whether there was something. An error says that more came than there was
    /// room for, which is the same.
    pub(super) fn skip(&mut self) -> bool {
        let mut buffer = [0; 256];
        let mut any = false;
        while !matches!(
            recv(&self.0, &mut buffer, RecvFlags::empty()),
            Err(Errno::AGAIN)
        ) {
            any = true;
        }
        any
    }
}

impl AsFd for Changes {
    /// Readable after a change.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket that asks the kernel.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// For interfaces and addresses: `rtnetlink(7)`.
    pub(super) fn route() -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // No protocol is number 0, which is NETLINK_ROUTE.
            None,
        )?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Asks for something to be done.
    pub(super) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let bytes = self.serialized(message, NLM_F_ACK | flags);
        self.exchange(&bytes, |_| Ok(()))
    }

    /// Asks for all objects of a kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.serialized(message, NLM_F_DUMP);
        let mut found = Vec::new();
        self.exchange(&bytes, |bytes| {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
            let message = message.map_err(io::Error::other)?;
            if let NetlinkPayload::InnerMessage(object) = message.payload {
                found.push(object);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn serialized(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Sends messages, and reads what comes back up to the end of a dump, or to an error or
    /// acknowledgement. An error that comes before the end of a dump ends it too.
    fn exchange(
        &self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        send(&self.fd, bytes, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            // With this flag the length is the datagram's, also if it did not fit.
            let (_, length) = recv(&self.fd, &mut *buffer, RecvFlags::TRUNC)?;
            let mut rest = buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            while let Some((message, behind)) = split(rest) {
                match kind(message) {
                    ERROR | DONE => return status(message),
                    _ => each(message)?,
                }
                rest = behind;
            }
        }
    }
}

/// The first of several messages, and what follows it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let length = usize::try_from(length).ok().filter(|&l| l >= HEADER)?;
    let message = bytes.get(..length)?;
    // Messages begin at multiples of four; the last one may lack its padding.
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, behind))
}

fn kind(message: &[u8]) -> u16 {
    message
        .get(4..6)
        .map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]))
}

/// The code of an error or of the end of a dump: 0, or a negative errno.
fn status(message: &[u8]) -> io::Result<()> {
    let code = message.get(HEADER..).and_then(|rest| rest.first_chunk());
    match code.map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn messages_are_told_apart() {
        let mut bytes = message(16, b"abcde");
        bytes.extend([0; 3]);
        bytes.extend(message(DONE, &0_i32.to_ne_bytes()));
        let (first, rest) = split(&bytes).unwrap();
        assert_eq!((kind(first), first.len()), (16, HEADER + 5));
        let (second, rest) = split(rest).unwrap();
        assert_eq!(kind(second), DONE);
        assert!(status(second).is_ok() && rest.is_empty());
        assert!(split(&bytes[..10]).is_none());
        let refused = message(ERROR, &(-17_i32).to_ne_bytes());
        assert_eq!(status(&refused).unwrap_err().raw_os_error(), Some(17));
    }
}
