//! A qcow2 header, checked before anything that it points to is read.
//!
//! QEMU's `docs/interop/qcow2.rst`. A header may come from anywhere: no field of it makes an
//! allocation that the file is too short for, and what `imago` can't keep up (internal snapshots,
//! an image that was not closed) is refused.

/// First bytes of a qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The header, its extensions and the backing file's name lie in the first cluster.
pub(super) const MAX_CLUSTER: u64 = 1 << MAX_CLUSTER_BITS;

const MIN_CLUSTER_BITS: u32 = 9;
const MAX_CLUSTER_BITS: u32 = 21;
/// Bytes of the L1 table, and of the refcount table, at most: QEMU's limits.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
const MAX_BACKING_NAME: usize = 1023;
const V2_LENGTH: u64 = 72;
const V3_LENGTH: u64 = 104;
/// Header extension types.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The fields of a header that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Size of the disk, in bytes.
    pub(super) size: u64,
    /// In bytes.
    pub(super) cluster: u64,
    /// The file that has what this one lacks.
    pub(super) backing: Option<Backing>,
    /// Snapshots within the image.
    pub(super) snapshots: u32,
    /// Offset of the refcount table.
    pub(super) refcount_table: u64,
    /// Bits of a reference count, as a power of two.
    refcount_order: u32,
}

impl Header {
    /// Whether `counts`, the start of the first refcount block, counts the header's own cluster.
    pub(super) fn counts_itself(&self, counts: [u8; 8]) -> bool {
        match 1_usize << self.refcount_order {
            bits @ 0..8 => counts[0] & ((1 << bits) - 1) != 0,
            bits => counts[..bits / 8].iter().any(|&byte| byte != 0),
        }
    }
}

/// A backing file as a header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: String,
    pub(super) format: Option<String>,
}

/// Error: a header that is damaged, or that needs something that is not here. The text does not name the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("the qcow2 header is truncated")]
    Truncated,
    #[error("not a qcow2 image")]
    NotQcow2,
    #[error("qcow2 version {0}; 2 and 3 are known")]
    Version(u32),
    #[error("qcow2 clusters of 2^{0} bytes")]
    Clusters(u32),
    #[error("encrypted")]
    Encrypted,
    #[error("qcow2 reference counts of 2^{0} bits")]
    ReferenceCounts(u32),
    #[error("the L1 table is too short for the disk")]
    ShortL1,
    #[error("not closed properly: mend it with `qemu-img check -r all`")]
    Dirty,
    #[error("marked as corrupt: mend it with `qemu-img check -r all`")]
    Corrupt,
    #[error("qcow2 with {0}")]
    Feature(&'static str),
    #[error("qcow2 features {0:#x} are unknown")]
    Features(u64),
    #[error("the {table} is at {offset:#x}, which is no cluster of its own")]
    TablePlace { table: &'static str, offset: u64 },
    #[error("the {table} is {len} bytes long; it has {most} at most")]
    TableLength {
        table: &'static str,
        len: u64,
        most: u64,
    },
    #[error("the {0} lies behind the end of the file")]
    TableOutside(&'static str),
    #[error("the backing file's name is {0} bytes long")]
    BackingLength(u32),
    #[error("the backing file's name or format is not UTF-8 text")]
    BackingText,
}

/// Reads big-endian fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes(&self, at: u64, len: u64) -> Result<&[u8], HeaderError> {
        let end = at.checked_add(len);
        let range = usize::try_from(at)
            .ok()
            .zip(end.and_then(|end| usize::try_from(end).ok()));
        range
            .and_then(|(at, end)| self.0.get(at..end))
            .ok_or(HeaderError::Truncated)
    }

    fn u32(&self, at: u64) -> Result<u32, HeaderError> {
        let bytes = self.bytes(at, 4)?;
        Ok(bytes.iter().fold(0, |n, &byte| n << 8 | u32::from(byte)))
    }

    fn u64(&self, at: u64) -> Result<u64, HeaderError> {
        Ok(u64::from(self.u32(at)?) << 32 | u64::from(self.u32(at + 4)?))
    }
}

/// Checks the header at the start of `first`, the first cluster of a file that is `length` bytes
/// long, or what there is of it.
///
/// # Errors
///
/// Fails with [`HeaderError`].
pub(super) fn parse(first: &[u8], length: u64) -> Result<Header, HeaderError> {
    let fields = Fields(first);
    if !first.starts_with(&MAGIC) {
        return Err(HeaderError::NotQcow2);
    }
    let version = fields.u32(4)?;
    if !matches!(version, 2 | 3) {
        return Err(HeaderError::Version(version));
    }
    let cluster_bits = fields.u32(20)?;
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        return Err(HeaderError::Clusters(cluster_bits));
    }
    if fields.u32(32)? != 0 {
        return Err(HeaderError::Encrypted);
    }
    // Version 2 has 16 bits.
    let (mut extensions, mut refcount_order) = (V2_LENGTH, 4);
    if version == 3 {
        features(fields.u64(72)?)?;
        refcount_order = fields.u32(96)?;
        if refcount_order > 6 {
            return Err(HeaderError::ReferenceCounts(refcount_order));
        }
        extensions = u64::from(fields.u32(100)?);
        if extensions < V3_LENGTH {
            return Err(HeaderError::Truncated);
        }
    }
    let cluster = 1 << cluster_bits;
    let size = fields.u64(24)?;
    let l1_entries = u64::from(fields.u32(36)?);
    // Of L2 entries of 8 bytes each a cluster is full.
    let per_l1_entry = cluster / 8 * cluster;
    if l1_entries < size.div_ceil(per_l1_entry) {
        return Err(HeaderError::ShortL1);
    }
    table(
        "L1 table",
        fields.u64(40)?,
        l1_entries * 8,
        MAX_L1,
        cluster,
        length,
    )?;
    let refcount_length = u64::from(fields.u32(56)?) * cluster;
    let (what, refcount_table) = ("refcount table", fields.u64(48)?);
    table(
        what,
        refcount_table,
        refcount_length,
        MAX_REFCOUNT_TABLE,
        cluster,
        length,
    )?;

    let within = usize::try_from(cluster).unwrap_or(usize::MAX);
    let fields = Fields(&first[..within.min(first.len())]);
    Ok(Header {
        size,
        cluster,
        backing: backing(&fields, extensions)?,
        snapshots: fields.u32(60)?,
        refcount_table,
        refcount_order,
    })
}

/// Refuses what an image needs and is not here.
fn features(bits: u64) -> Result<(), HeaderError> {
    let unknown = [
        (DIRTY, HeaderError::Dirty),
        (CORRUPT, HeaderError::Corrupt),
        (EXTERNAL_DATA, HeaderError::Feature("an external data file")),
        (
            COMPRESSION_TYPE,
            HeaderError::Feature("another compression than zlib"),
        ),
        (EXTENDED_L2, HeaderError::Feature("extended L2 entries")),
    ];
    for (bit, error) in unknown {
        if bits & bit != 0 {
            return Err(error);
        }
    }
    match bits {
        0 => Ok(()),
        _ => Err(HeaderError::Features(bits)),
    }
}

/// Checks that a table is aligned, no longer than `most`, and within the file.
fn table(
    table: &'static str,
    offset: u64,
    len: u64,
    most: u64,
    cluster: u64,
    file: u64,
) -> Result<(), HeaderError> {
    if len == 0 {
        return Ok(());
    }
    if !offset.is_multiple_of(cluster) || offset == 0 {
        return Err(HeaderError::TablePlace { table, offset });
    }
    if len > most {
        return Err(HeaderError::TableLength { table, len, most });
    }
    if offset.checked_add(len).is_none_or(|end| end > file) {
        return Err(HeaderError::TableOutside(table));
    }
    Ok(())
}

fn backing(fields: &Fields<'_>, extensions: u64) -> Result<Option<Backing>, HeaderError> {
    let offset = fields.u64(8)?;
    let len = fields.u32(16)?;
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len as usize > MAX_BACKING_NAME {
        return Err(HeaderError::BackingLength(len));
    }
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes);
        text.map(ToOwned::to_owned)
            .map_err(|_| HeaderError::BackingText)
    };
    let name = text(fields.bytes(offset, len.into())?)?;
    let mut at = extensions;
    let mut format = None;
    // A v2 header may end where the name begins.
    while at < offset {
        let (kind, len) = (fields.u32(at)?, u64::from(fields.u32(at + 4)?));
        match kind {
            END => break,
            BACKING_FORMAT => format = Some(text(fields.bytes(at + 8, len)?)?),
            _ => {}
        }
        at += 8 + len.next_multiple_of(8);
    }
    Ok(Some(Backing { name, format }))
}
