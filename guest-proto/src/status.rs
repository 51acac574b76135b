//! Statuses: the result of a hypercall in RAX.

use crate::layout::abi_enum;

abi_enum! {
    /// Result of a hypercall, in RAX as a sign-extended 64-bit value. Zero is success; the others
    /// are negative and share the number of the Linux errno that means the same
    /// (`include/uapi/asm-generic/errno.h`), so that the driver can hand them on.
    pub enum Status: i64 {
        /// Done; RDX holds the value, if the call has one.
        Ok = 0,
        /// The caller may not make this call: it is not the root partition, or not in ring 0.
        NotPermitted = -1,
        /// No partition has this id.
        NoSuchPartition = -2,
        /// The partition has no virtual CPU of this index.
        NoSuchVcpu = -6,
        /// More items than one call takes.
        TooMany = -7,
        /// Not finished: call again with the same arguments (RDX: how much is done), or, where
        /// pages were deposited just now, after `epoch_pass` has run on every CPU.
        TryAgain = -11,
        /// The partition's pool lacks pages: deposit RDX more, then call again.
        NeedPages = -12,
        /// A frame does not belong to the partition that gives it away.
        NotOwner = -13,
        /// An address is not RAM, or not mapped, where RAM is needed.
        BadAddress = -14,
        /// The object is in use: a virtual CPU that is running, a partition with running ones.
        Busy = -16,
        /// An object of this id exists.
        Exists = -17,
        /// An argument has a reserved bit set, is misaligned or has no meaning.
        InvalidArgument = -22,
        /// A table of fixed size is full.
        Full = -28,
        /// A number is outside its documented range.
        OutOfRange = -34,
        /// No hypercall has this number.
        UnknownCall = -38,
        /// The object is not in a state that allows this.
        InvalidState = -77,
        /// The CPU or this build lacks what the call needs.
        NotSupported = -95,
        /// The range overlaps one that exists.
        Overlap = -98,
    }
}
