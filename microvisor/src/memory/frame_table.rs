//! The owner of each frame of the machine.
//!
//! One word per 4 KiB frame, changed by compare-and-swap only, one function per transition and
//! named after it. A function that maps a frame anywhere has asked one of them first, so a frame
//! cannot be root's and the microvisor's, or two partitions', at once.
//!
//! ```text
//!                 root_deposit            pool_take
//!        ┌──────────────────────▶ Pool ──────────────▶ Metadata
//!        │◀──────────────────────      ◀──────────────
//!      Root        pool_return              pool_put
//!        │── root_share_guest ──▶ Shared ── guest_unshare ──▶ Root
//!        │── root_donate_guest ─▶ Guest ─── guest_return ───▶ Root
//!        └── root_share_page ───▶ SharedPage ─ page_unshare ─▶ Root
//! ```
//!
//! `Absent` and `Reserved` are set at boot and never left. The payload is the next frame of the
//! list for `Pool` (in the table and not in the frame, which root may still write through a stale
//! translation), and the guest page for `Shared` and `Guest`.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::hypercall::FrameOwner;

use super::{Frame, GuestPage, Hpa, PhysMap};

mod boot;

/// The number of a partition; 0 is root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionId(pub u8);

/// The owner of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: it is not RAM that can be given away, but a hole, a device, or firmware's.
    Absent,
    /// The microvisor, since boot.
    Reserved,
    /// The root partition.
    Root,
    /// The microvisor, for a partition; the frame is not in use. The payload links the pool's list.
    Pool(PartitionId),
    /// The microvisor, for a partition; the frame holds a nested table, or state of a virtual CPU.
    Metadata(PartitionId),
    /// A partition, as RAM that root cannot reach. The payload is the guest page.
    Guest(PartitionId),
    /// A partition, as RAM that root keeps mapped. The payload is the guest page.
    Shared(PartitionId),
    /// Root and the microvisor: the frame is a `VcpuPage`.
    SharedPage(PartitionId),
}

impl Owner {
    /// Returns the partition that this owner names.
    pub fn partition(self) -> Option<PartitionId> {
        match self {
            Self::Absent | Self::Reserved | Self::Root => None,
            Self::Pool(id)
            | Self::Metadata(id)
            | Self::Guest(id)
            | Self::Shared(id)
            | Self::SharedPage(id) => Some(id),
        }
    }

    /// Returns whether root's nested map has a frame of this owner.
    pub fn is_in_roots_map(self) -> bool {
        match self {
            Self::Absent | Self::Root | Self::Shared(_) | Self::SharedPage(_) => true,
            Self::Reserved | Self::Pool(_) | Self::Metadata(_) | Self::Guest(_) => false,
        }
    }
}

/// Error: a transition did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The frame is not RAM.
    NotRam,
    /// The frame has another owner.
    NotOwner,
}

/// The payload of a link that leads nowhere, or of no guest page.
const PAYLOAD_NONE: u64 = (1 << PAYLOAD_BITS) - 1;
const PAYLOAD_BITS: u32 = 48;
const PAYLOAD_SHIFT: u32 = 16;
const ID_SHIFT: u32 = 8;

const fn word(owner: Owner, payload: u64) -> u64 {
    let (kind, id) = match owner {
        Owner::Absent => (FrameOwner::Absent, 0),
        Owner::Reserved => (FrameOwner::Reserved, 0),
        Owner::Root => (FrameOwner::Root, 0),
        Owner::Pool(id) => (FrameOwner::Pool, id.0),
        Owner::Metadata(id) => (FrameOwner::Metadata, id.0),
        Owner::Guest(id) => (FrameOwner::Guest, id.0),
        Owner::Shared(id) => (FrameOwner::Shared, id.0),
        Owner::SharedPage(id) => (FrameOwner::SharedPage, id.0),
    };
    kind.raw() as u64 | (id as u64) << ID_SHIFT | (payload & PAYLOAD_NONE) << PAYLOAD_SHIFT
}

const fn owner_of(word: u64) -> Owner {
    let id = PartitionId((word >> ID_SHIFT) as u8);
    match FrameOwner::from_raw(word as u8) {
        Some(FrameOwner::Reserved) => Owner::Reserved,
        Some(FrameOwner::Root) => Owner::Root,
        Some(FrameOwner::Pool) => Owner::Pool(id),
        Some(FrameOwner::Metadata) => Owner::Metadata(id),
        Some(FrameOwner::Guest) => Owner::Guest(id),
        Some(FrameOwner::Shared) => Owner::Shared(id),
        Some(FrameOwner::SharedPage) => Owner::SharedPage(id),
        Some(FrameOwner::Absent) | None => Owner::Absent,
    }
}

/// A frame that a partition's pool gave out, and proof that nothing else uses it. [`FrameTable::pool_take`] alone
/// makes one, and [`FrameTable::pool_put`] ends it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to its partition"]
pub struct OwnedFrame {
    frame: Frame,
    partition: PartitionId,
}

impl OwnedFrame {
    /// Returns the frame.
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Makes the proof anew for a frame whose number stood in an entry of the partition's own nested map. Only
    /// `nested` calls this, for tables that it has just unlinked.
    pub(super) fn from_table(frame: Frame, partition: PartitionId) -> Self {
        Self { frame, partition }
    }
}

/// The table. Its words lie in a reserved run of physical memory.
#[derive(Debug)]
pub struct FrameTable {
    map: PhysMap,
    base: Hpa,
    frames: u64,
    deposited: AtomicU64,
    guest: AtomicU64,
}

impl FrameTable {
    /// Returns the count of frames that the table covers, which is the end of RAM.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Returns the count of frames in pools and in use as metadata.
    pub fn deposited(&self) -> u64 {
        self.deposited.load(Ordering::Relaxed)
    }

    /// Returns the count of frames that are guests' RAM.
    pub fn guest(&self) -> u64 {
        self.guest.load(Ordering::Relaxed)
    }

    /// Returns the owner of a frame. Another CPU may change it the next moment, unless the caller is the owner.
    pub fn owner(&self, frame: Frame) -> Owner {
        owner_of(self.raw(frame))
    }

    /// Returns the frame's word of the table, in the form of `VerifyReport::owner`. It is 0, `Absent`, for a frame
    /// outside of the table.
    pub fn raw(&self, frame: Frame) -> u64 {
        self.entry(frame).map_or(0, |e| e.load(Ordering::Acquire))
    }

    /// Returns the guest page at which a `Shared` or `Guest` frame is mapped.
    pub fn guest_page(&self, frame: Frame) -> Option<GuestPage> {
        let word = self.raw(frame);
        match owner_of(word) {
            Owner::Guest(_) | Owner::Shared(_) => Some(GuestPage::new(word >> PAYLOAD_SHIFT)),
            _ => None,
        }
    }

    /// Moves a frame from root to a pool. The caller then takes it out of root's nested map.
    pub fn root_deposit(
        &self,
        frame: Frame,
        id: PartitionId,
        next: Option<Frame>,
    ) -> Result<(), FrameError> {
        self.change(frame, Owner::Root, Owner::Pool(id), link(next))?;
        self.deposited.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Moves a frame from a pool to root. The caller has scrubbed it and put it into root's nested map. Returns the
    /// frame that it was linked to.
    pub fn pool_return(&self, frame: Frame, id: PartitionId) -> Result<Option<Frame>, FrameError> {
        let next = self.change(frame, Owner::Pool(id), Owner::Root, PAYLOAD_NONE)?;
        self.deposited.fetch_sub(1, Ordering::Relaxed);
        Ok(unlink(next))
    }

    /// Moves a frame from a pool into use as metadata. Returns the proof of ownership and the frame that it was linked
    /// to.
    pub fn pool_take(
        &self,
        frame: Frame,
        id: PartitionId,
    ) -> Result<(OwnedFrame, Option<Frame>), FrameError> {
        let next = self.change(frame, Owner::Pool(id), Owner::Metadata(id), PAYLOAD_NONE)?;
        let partition = id;
        Ok((OwnedFrame { frame, partition }, unlink(next)))
    }

    /// Moves a metadata frame back to the pool.
    pub fn pool_put(&self, owned: OwnedFrame, next: Option<Frame>) -> Result<(), FrameError> {
        let id = owned.partition;
        self.change(
            owned.frame,
            Owner::Metadata(id),
            Owner::Pool(id),
            link(next),
        )?;
        Ok(())
    }

    /// Returns the frame that a `Pool` frame is linked to.
    pub fn pool_next(&self, frame: Frame) -> Option<Frame> {
        let word = self.raw(frame);
        match owner_of(word) {
            Owner::Pool(_) => unlink(word >> PAYLOAD_SHIFT),
            _ => None,
        }
    }

    /// Links a `Pool` frame to another list.
    pub fn pool_link(
        &self,
        frame: Frame,
        id: PartitionId,
        next: Option<Frame>,
    ) -> Result<(), FrameError> {
        self.change(frame, Owner::Pool(id), Owner::Pool(id), link(next))?;
        Ok(())
    }

    /// Gives `count` frames of root's from `first` on to a guest, as RAM from guest page `page` on, or none of them. Root
    /// keeps them mapped. A large page has 512 frames, so this is a loop of few instructions.
    pub fn root_share_guest(
        &self,
        first: Frame,
        count: u64,
        id: PartitionId,
        page: GuestPage,
    ) -> Result<(), FrameError> {
        const ROOT: u64 = word(Owner::Root, PAYLOAD_NONE);
        let shared = |n: u64| word(Owner::Shared(id), page.offset(n).number());
        let change = |entry: &AtomicU64, from, to| {
            entry.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
        };
        let entries = self.entries(first, count).ok_or(FrameError::NotRam)?;
        for (n, entry) in (0..).zip(entries) {
            let Err(found) = change(entry, ROOT, shared(n)) else {
                continue;
            };
            for (n, entry) in (0..n).zip(entries) {
                // Nobody else changes a frame that is shared with this partition while its map is locked.
                let _ = change(entry, shared(n), ROOT);
            }
            return Err(match owner_of(found) {
                Owner::Absent => FrameError::NotRam,
                _ => FrameError::NotOwner,
            });
        }
        self.guest.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a frame that root shares with a guest back to root.
    pub fn guest_unshare(&self, frame: Frame, id: PartitionId) -> Result<(), FrameError> {
        self.change(frame, Owner::Shared(id), Owner::Root, PAYLOAD_NONE)?;
        self.guest.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a frame of root's to a guest alone as RAM at guest page `page`.
    pub fn root_donate_guest(
        &self,
        frame: Frame,
        id: PartitionId,
        page: GuestPage,
    ) -> Result<(), FrameError> {
        self.change(frame, Owner::Root, Owner::Guest(id), page.number())?;
        self.guest.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a guest's own frame back to root. The caller has scrubbed it and put it into root's nested map.
    pub fn guest_return(&self, frame: Frame, id: PartitionId) -> Result<(), FrameError> {
        self.change(frame, Owner::Guest(id), Owner::Root, PAYLOAD_NONE)?;
        self.guest.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a frame of root's a page that root and the microvisor share.
    pub fn root_share_page(&self, frame: Frame, id: PartitionId) -> Result<(), FrameError> {
        self.change(frame, Owner::Root, Owner::SharedPage(id), PAYLOAD_NONE)?;
        Ok(())
    }

    /// Gives a page that root and the microvisor share back to root alone.
    pub fn page_unshare(&self, frame: Frame, id: PartitionId) -> Result<(), FrameError> {
        self.change(frame, Owner::SharedPage(id), Owner::Root, PAYLOAD_NONE)?;
        Ok(())
    }

    /// Checks that a call of root's may read or write this frame. The frame must be root's alone: no structure of a
    /// call belongs into RAM that root shares with a guest.
    ///
    /// The frame may be deposited by another CPU while this one copies; it is not put to use
    /// before this CPU passes an epoch, which it does not do inside a call.
    pub fn check_root(&self, frame: Frame) -> Result<(), FrameError> {
        match self.owner(frame) {
            Owner::Root => Ok(()),
            Owner::Absent => Err(FrameError::NotRam),
            _ => Err(FrameError::NotOwner),
        }
    }

    fn entry(&self, frame: Frame) -> Option<&AtomicU64> {
        self.entries(frame, 1)?.first()
    }

    /// Returns the entries of `count` frames from `first` on, if the table has all of them.
    fn entries(&self, first: Frame, count: u64) -> Option<&[AtomicU64]> {
        if first.number().checked_add(count)? > self.frames {
            return None;
        }
        let at = self.base.offset(Self::bytes(first.number()));
        self.map.words(at, count as usize)
    }

    /// Changes an entry. Returns the former payload.
    fn change(
        &self,
        frame: Frame,
        from: Owner,
        to: Owner,
        payload: u64,
    ) -> Result<u64, FrameError> {
        let entry = self.entry(frame).ok_or(FrameError::NotRam)?;
        let mut old = entry.load(Ordering::Acquire);
        loop {
            match owner_of(old) {
                owner if owner == from => {}
                Owner::Absent => return Err(FrameError::NotRam),
                _ => return Err(FrameError::NotOwner),
            }
            match entry.compare_exchange_weak(
                old,
                word(to, payload),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(old >> PAYLOAD_SHIFT),
                Err(now) => old = now,
            }
        }
    }
}

fn link(next: Option<Frame>) -> u64 {
    next.map_or(PAYLOAD_NONE, Frame::number)
}

fn unlink(payload: u64) -> Option<Frame> {
    (payload != PAYLOAD_NONE).then(|| Frame::new(payload))
}
