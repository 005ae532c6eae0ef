//! What is exported, and where the handshake looks it up ("Transmission flags", "Size constraints").

use thiserror::Error;

use crate::proto::{MAX_PAYLOAD, tx_flag};
use crate::reply::ReplyStyle;

/// Smallest [`ExportInfo::block_max`]: an unfragmented read of this many bytes must be served (`NBD_CMD_READ`).
const BLOCK_MAX_FLOOR: u32 = 64 << 10;

/// One export as it is offered to a client. [`ExportInfo::check`] tells what values fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name, at most [`MAX_STRING_LEN`](crate::MAX_STRING_LEN) bytes.
    pub name: String,
    /// Size in bytes, a multiple of `block_min`.
    pub size_bytes: u64,
    /// Writes, trims and zeroes are refused with EPERM, and not advertised.
    pub read_only: bool,
    /// Every offset and length is a multiple of this: 512 or 4096 bytes.
    pub block_min: u32,
    /// Below this many bytes a write costs more than its size.
    pub block_preferred: u32,
    /// Longest read or write in bytes, 64 KiB to [`MAX_PAYLOAD`]. Requests without payload may be longer.
    pub block_max: u32,
    /// A flush or FUA on one connection covers the completed writes of all of them.
    pub can_multi_conn: bool,
    /// Flush is served.
    pub flush: bool,
    /// Force unit access is served.
    pub fua: bool,
    /// Trim is served.
    pub trim: bool,
    /// Write zeroes is served, with and without holes.
    pub write_zeroes: bool,
    /// Write zeroes may be asked to fail with ENOTSUP where it is no faster than a write.
    pub fast_zero: bool,
    /// Cache (a hint that a range will be read) is served.
    pub cache: bool,
    /// The medium rotates.
    pub rotational: bool,
}

/// Why an [`ExportInfo`] cannot be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadExport {
    /// Name too long, or with a NUL.
    #[error("the export's name is longer than 4096 bytes or holds a NUL")]
    Name,
    /// Minimum block size.
    #[error("minimum block size {0} is neither 512 nor 4096")]
    BlockMin(u32),
    /// Preferred block size.
    #[error("preferred block size {0} is not a power of two between the minimum and the maximum")]
    BlockPreferred(u32),
    /// Maximum payload.
    #[error("maximum payload {0} is not a multiple of the minimum block size from 64 KiB to 32 MiB")]
    BlockMax(u32),
    /// Size of the export.
    #[error("export size {0} is not a multiple of the minimum block size below 2^63")]
    Size(u64),
}

impl ExportInfo {
    /// Checks the values against "Size constraints" and this crate's bounds.
    ///
    /// # Errors
    /// The first value that does not fit.
    pub fn check(&self) -> Result<(), BadExport> {
        if !is_protocol_string(&self.name) {
            return Err(BadExport::Name);
        }
        if !matches!(self.block_min, 512 | 4096) {
            return Err(BadExport::BlockMin(self.block_min));
        }
        if !(BLOCK_MAX_FLOOR..=MAX_PAYLOAD).contains(&self.block_max) || !self.block_max.is_multiple_of(self.block_min)
        {
            return Err(BadExport::BlockMax(self.block_max));
        }
        if !self.block_preferred.is_power_of_two() || !(self.block_min..=self.block_max).contains(&self.block_preferred)
        {
            return Err(BadExport::BlockPreferred(self.block_preferred));
        }
        // Clients keep sizes in a signed 64-bit off_t.
        if i64::try_from(self.size_bytes).is_err() || !self.size_bytes.is_multiple_of(u64::from(self.block_min)) {
            return Err(BadExport::Size(self.size_bytes));
        }
        Ok(())
    }

    /// The transmission flags of this export. They depend on the replies agreed on: "do not fragment" exists only
    /// with structured ones.
    pub(crate) fn transmission_flags(&self, style: ReplyStyle) -> u16 {
        let writable = !self.read_only;
        let bits = [
            (self.read_only, tx_flag::READ_ONLY),
            (self.flush, tx_flag::SEND_FLUSH),
            (self.fua && writable, tx_flag::SEND_FUA),
            (self.rotational, tx_flag::ROTATIONAL),
            (self.trim && writable, tx_flag::SEND_TRIM),
            (self.write_zeroes && writable, tx_flag::SEND_WRITE_ZEROES),
            (style == ReplyStyle::Structured, tx_flag::SEND_DF),
            (self.can_multi_conn, tx_flag::CAN_MULTI_CONN),
            (self.cache, tx_flag::SEND_CACHE),
            (self.fast_zero && self.write_zeroes && writable, tx_flag::SEND_FAST_ZERO),
        ];
        bits.iter().fold(tx_flag::HAS_FLAGS, |flags, &(on, bit)| if on { flags | bit } else { flags })
    }
}

/// Where the handshake finds exports. Both calls are queries without side effects: a client may ask for the same
/// export several times before it uses it, or never use it.
pub trait Exports {
    /// The names of all exports, in the order they are shown. The default export ("") need not be among them.
    fn list(&self) -> Vec<String>;

    /// The export that `name` stands for; `""` asks for the default export.
    ///
    /// # Errors
    /// Why it cannot be used now. The reason reaches the user of the client.
    fn open(&self, name: &str) -> Result<ExportInfo, OpenError>;
}

/// Why an export cannot be used. The text is shown to the user of the client: one line, at most 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no such export (`NBD_REP_ERR_UNKNOWN`).
    #[error("{0}")]
    Unknown(String),
    /// It exists and may not be used here and now, for instance because its resource is Secondary
    /// (`NBD_REP_ERR_POLICY`).
    #[error("{0}")]
    Refused(String),
    /// The server is shutting down (`NBD_REP_ERR_SHUTDOWN`).
    #[error("{0}")]
    ShuttingDown(String),
}

/// Whether a string may travel in the protocol ("Conventions").
pub(crate) fn is_protocol_string(text: &str) -> bool {
    text.len() <= crate::proto::MAX_STRING_LEN && !text.contains('\0')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn export(size_bytes: u64) -> ExportInfo {
        ExportInfo {
            name: "r0".into(),
            size_bytes,
            read_only: false,
            block_min: 512,
            block_preferred: 4096,
            block_max: MAX_PAYLOAD,
            can_multi_conn: true,
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: false,
            rotational: false,
        }
    }

    #[test]
    fn nbd_export_check_names_the_bad_value() {
        let good = export(1 << 20);
        assert_eq!(good.check(), Ok(()));
        let with = |change: fn(&mut ExportInfo)| {
            let mut changed = good.clone();
            change(&mut changed);
            changed.check()
        };
        assert_eq!(with(|e| e.name = "a\0b".into()), Err(BadExport::Name));
        assert_eq!(with(|e| e.name = "x".repeat(4097)), Err(BadExport::Name));
        assert_eq!(with(|e| e.block_min = 1), Err(BadExport::BlockMin(1)));
        assert_eq!(with(|e| e.block_min = 0), Err(BadExport::BlockMin(0)));
        assert_eq!(with(|e| e.block_preferred = 6000), Err(BadExport::BlockPreferred(6000)));
        assert_eq!(with(|e| e.block_preferred = 256), Err(BadExport::BlockPreferred(256)));
        assert_eq!(with(|e| e.block_max = MAX_PAYLOAD + 512), Err(BadExport::BlockMax(MAX_PAYLOAD + 512)));
        assert_eq!(with(|e| e.block_max = 4096), Err(BadExport::BlockMax(4096)));
        assert_eq!(with(|e| e.size_bytes = 1000), Err(BadExport::Size(1000)));
        assert_eq!(with(|e| e.size_bytes = 1 << 63), Err(BadExport::Size(1 << 63)));
        assert_eq!(with(|e| e.size_bytes = 0), Ok(()), "an empty export is legal");
    }

    #[test]
    fn nbd_export_flags_follow_the_specification() {
        let mut e = export(1 << 20);
        // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, FAST_ZERO.
        assert_eq!(e.transmission_flags(ReplyStyle::Simple), 0b1001_0110_1101);
        // DF comes with structured replies only.
        assert_eq!(e.transmission_flags(ReplyStyle::Structured), 0b1001_1110_1101);
        e.write_zeroes = false;
        assert_eq!(e.transmission_flags(ReplyStyle::Simple), 0b0001_0010_1101, "no fast zero without zeroes");
        e.read_only = true;
        assert_eq!(e.transmission_flags(ReplyStyle::Simple), 0b0001_0000_0111);
        e.rotational = true;
        e.cache = true;
        assert_eq!(e.transmission_flags(ReplyStyle::Simple), 0b0101_0001_0111);
    }
}
