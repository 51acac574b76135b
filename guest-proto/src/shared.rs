//! The [`VcpuPage`](crate::vcpu_page::VcpuPage) as both sides may touch it while the other one runs: atomics only.
//!
//! A `&SharedPage` is sound over memory that somebody else writes at the same time. Groups that
//! have one writer and a hand-over by other means (`vcpu_run` and its return) are copied as
//! [`Words`]; the ring's ends are in [`ring`](crate::ring), the interrupts in
//! [`posted`](crate::posted).
//!
//! With `--cfg loom`, tests use loom's atomics, and the layout means nothing.

use core::marker::PhantomData;

#[cfg(not(all(loom, test)))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(all(loom, test))]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use zerocopy::{FromBytes, IntoBytes};

use crate::vcpu_page::{ExecutionState, GeneralRegisters, Intercept, Reply, VcpuState, Vectors};

/// A plain structure `T` of `N` 64-bit words, copied word by word. No order is implied: the caller
/// knows by other means that the other side is done with it, or takes what it gets as an
/// allegation.
#[repr(transparent)]
#[derive(Debug)]
pub struct Words<T, const N: usize> {
    words: [AtomicU64; N],
    holds: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + zerocopy::Immutable, const N: usize> Words<T, N> {
    const FITS: () = assert!(size_of::<T>() == 8 * N);

    /// Copies it out; each word is read once.
    pub fn load(&self) -> T {
        const { Self::FITS };
        self.copy_out()
    }

    /// Copies out the first fields alone; each word is read once.
    pub fn load_first<F: First<T>>(&self) -> F {
        self.copy_out()
    }

    /// Copies `value` in.
    pub fn store(&self, value: &T) {
        const { Self::FITS };
        self.copy_in(value);
    }

    /// Copies in the first fields alone.
    pub fn store_first<F: First<T>>(&self, value: &F) {
        self.copy_in(value);
    }

    fn copy_out<V: FromBytes + IntoBytes>(&self) -> V {
        let mut value = V::new_zeroed();
        for (bytes, word) in value.as_mut_bytes().chunks_exact_mut(8).zip(&self.words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        value
    }

    fn copy_in(&self, value: &(impl IntoBytes + zerocopy::Immutable)) {
        for (bytes, word) in value.as_bytes().chunks_exact(8).zip(&self.words) {
            let mut raw = [0; 8];
            raw.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(raw), Ordering::Relaxed);
        }
    }

    /// One of its words, for a field that is wanted alone. `None` past the end.
    pub fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.words.get(index)
    }
}

/// A structure of the fields that `T` begins with.
pub trait First<T: FromBytes + IntoBytes + zerocopy::Immutable>:
    FromBytes + IntoBytes + zerocopy::Immutable + Sized
{
    /// Returns the first fields of a whole structure.
    fn of(all: &T) -> Self {
        let first = Self::read_from_prefix(all.as_bytes());
        // It is not longer than the whole: `first!` checks this.
        first.map_or_else(|_| Self::new_zeroed(), |(first, _)| first)
    }

    /// Returns a whole structure that begins with these fields. The others are 0.
    fn extended(&self) -> T {
        let mut all = T::new_zeroed();
        // As above.
        let _ = self.write_to_prefix(all.as_mut_bytes());
        all
    }
}

macro_rules! first {
    ($first:ident of $all:ident { $($field:ident),* $(,)? }) => {
        impl First<$all> for $first {}
        const _: () = assert!(size_of::<$first>() <= size_of::<$all>());
        $( const _: () = assert!(
            core::mem::offset_of!($first, $field) == core::mem::offset_of!($all, $field)
        ); )*
    };
}

first!(GeneralRegisters of VcpuState { gpr, rip, rflags });
first!(GeneralRegisters of ExecutionState { gpr, rip, rflags });
first!(ExecutionState of VcpuState {
    gpr, rip, rflags, segment, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, efer, pkru,
});

/// [`PostedInterrupts`](crate::vcpu_page::PostedInterrupts) as atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PostedLines {
    pub(crate) pending: [AtomicU64; 4],
    pub(crate) level: [AtomicU64; 4],
    pub(crate) outstanding: AtomicU32,
    pub(crate) nmi: AtomicU32,
    #[cfg(not(all(loom, test)))]
    reserved: [AtomicU64; 7],
}

/// [`RingProducer`](crate::vcpu_page::RingProducer) as atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ProducerLine {
    pub(crate) head: AtomicU32,
    #[cfg(not(all(loom, test)))]
    reserved: [AtomicU32; 15],
}

/// [`RingConsumer`](crate::vcpu_page::RingConsumer) as atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ConsumerLine {
    pub(crate) tail: AtomicU32,
    pub(crate) need_wakeup: AtomicU32,
    #[cfg(not(all(loom, test)))]
    reserved: [AtomicU32; 14],
}

/// [`PostedWrite`](crate::vcpu_page::PostedWrite) as atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    pub(crate) words: [AtomicU64; 2],
}

/// [`VcpuPage`](crate::vcpu_page::VcpuPage) as atomics.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct SharedPage {
    /// Microvisor → root.
    pub intercept: Words<Intercept, 16>,
    /// Worker → microvisor.
    pub reply: Words<Reply, 8>,
    /// The driver's.
    pub driver: [AtomicU64; 8],
    /// Driver → microvisor.
    pub posted: PostedLines,
    /// Microvisor → worker.
    pub producer: ProducerLine,
    /// Worker → microvisor.
    pub consumer: ConsumerLine,
    /// Both ways, while the virtual CPU is stopped.
    pub state: Words<VcpuState, 80>,
    /// Both ways, while the virtual CPU is stopped.
    pub vectors: Words<Vectors, 32>,
    reserved: [AtomicU64; 80],
    /// Ring entries.
    pub ring: [Slot; crate::limits::RING_ENTRIES as usize],
}

#[cfg(not(all(loom, test)))]
mod layout {
    use super::{AtomicU64, PhantomData, SharedPage, Slot, Words};
    use crate::vcpu_page::VcpuPage;
    use core::mem::offset_of;

    impl SharedPage {
        /// A page of zeros.
        pub fn new() -> Self {
            fn words<T, const N: usize>() -> Words<T, N> {
                Words {
                    words: [const { AtomicU64::new(0) }; N],
                    holds: PhantomData,
                }
            }
            Self {
                intercept: words(),
                reply: words(),
                driver: Default::default(),
                posted: Default::default(),
                producer: Default::default(),
                consumer: Default::default(),
                state: words(),
                vectors: words(),
                reserved: [const { AtomicU64::new(0) }; 80],
                ring: [const {
                    Slot {
                        words: [const { AtomicU64::new(0) }; 2],
                    }
                }; 128],
            }
        }
    }

    impl Default for SharedPage {
        fn default() -> Self {
            Self::new()
        }
    }

    macro_rules! same_place {
        ($($field:ident),*) => {
            $( const _: () = assert!(
                offset_of!(SharedPage, $field) == offset_of!(VcpuPage, $field)
            ); )*
        };
    }
    same_place!(
        intercept, reply, driver, posted, producer, consumer, state, vectors, reserved, ring
    );
    const _: () = assert!(size_of::<SharedPage>() == size_of::<VcpuPage>());
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn first_fields_are_those_of_the_whole() {
        let all = VcpuState {
            gpr: core::array::from_fn(|n| n as u64 + 1),
            rip: 17,
            rflags: 18,
            pkru: 44,
            xcr0: 45,
            ..VcpuState::default()
        };
        let page = SharedPage::new();
        page.state.store(&all);
        let first: ExecutionState = page.state.load_first();
        assert_eq!((first, first.pkru), (ExecutionState::of(&all), 44));
        let beginning = VcpuState { xcr0: 0, ..all };
        assert_eq!(first.extended(), beginning, "the others are 0");
        // The fields behind them stay.
        page.state.store(&VcpuState {
            xcr0: 45,
            ..VcpuState::default()
        });
        page.state.store_first(&GeneralRegisters::of(&first));
        let expected = VcpuState { pkru: 0, ..all };
        assert_eq!(page.state.load(), expected);
    }
}
