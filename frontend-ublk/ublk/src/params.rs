//! What a disk looks like to its users.

use crate::uapi::{self, PARAM_BASIC, PARAM_DISCARD, PARAMS_LEN, ParamBasic, ParamDiscard, Params};

/// A request can always be as long as this: a page.
pub const MIN_IO_BYTES: u32 = 4096;
const SECTOR_BYTES: u32 = 512;

/// Size and limits of a disk. It always has flushes, FUA and writes of zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sectors of 512 bytes.
    pub size_sectors: u64,
    /// Smallest unit of I/O.
    pub logical_block_bytes: u32,
    /// Unit that is written without reading first.
    pub physical_block_bytes: u32,
    /// Longest read or write, a power of two of at least [`MIN_IO_BYTES`]; none crosses a multiple of it.
    pub max_io_bytes: u32,
    /// Longest discard and longest write of zeroes.
    pub max_range_bytes: u32,
    /// Discards reach the backing device.
    pub discard: bool,
    /// It turns.
    pub rotational: bool,
    /// Nobody may write.
    pub read_only: bool,
}

impl Limits {
    /// For the driver.
    ///
    /// # Panics
    /// Where a size is not a power of two, or smaller than a page.
    pub(crate) fn params(&self) -> Params {
        let shift = |bytes: u32| {
            assert!(bytes.is_power_of_two(), "{bytes} bytes");
            bytes.ilog2() as u8
        };
        assert!(self.max_io_bytes.is_power_of_two() && self.max_io_bytes >= MIN_IO_BYTES, "{self:?}");
        let attr = |set: bool, attr: u32| if set { attr } else { 0 };
        let max_sectors = self.max_io_bytes / SECTOR_BYTES;
        let range_sectors = self.max_range_bytes / SECTOR_BYTES;
        Params {
            len: PARAMS_LEN,
            types: PARAM_BASIC | PARAM_DISCARD,
            basic: ParamBasic {
                attrs: uapi::ATTR_VOLATILE_CACHE
                    | uapi::ATTR_FUA
                    | attr(self.read_only, uapi::ATTR_READ_ONLY)
                    | attr(self.rotational, uapi::ATTR_ROTATIONAL),
                logical_bs_shift: shift(self.logical_block_bytes),
                physical_bs_shift: shift(self.physical_block_bytes),
                io_opt_shift: shift(self.physical_block_bytes),
                io_min_shift: shift(self.physical_block_bytes),
                max_sectors,
                chunk_sectors: max_sectors,
                dev_sectors: self.size_sectors,
                virt_boundary_mask: 0,
            },
            discard: ParamDiscard {
                alignment: 0,
                granularity: self.physical_block_bytes,
                max_discard_sectors: if self.discard { range_sectors } else { 0 },
                max_write_zeroes_sectors: range_sectors,
                max_discard_segments: u16::from(self.discard),
                reserved: 0,
            },
            ..Params::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ublk_limits_become_parameters() {
        let limits = Limits {
            size_sectors: 2048,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            max_io_bytes: 1 << 20,
            max_range_bytes: 128 << 20,
            discard: false,
            rotational: true,
            read_only: false,
        };
        let params = limits.params();
        assert_eq!(params.basic.attrs, 0b1110, "rotational, cache, FUA");
        assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (9, 12));
        assert_eq!(
            (params.basic.max_sectors, params.basic.chunk_sectors, params.basic.dev_sectors),
            (2048, 2048, 2048)
        );
        assert_eq!((params.discard.max_discard_sectors, params.discard.max_discard_segments), (0, 0));
        assert_eq!(params.discard.max_write_zeroes_sectors, 262_144);
        assert_eq!(params.discard.granularity, 4096, "the driver refuses 0");
        let params = Limits { discard: true, read_only: true, rotational: false, ..limits }.params();
        assert_eq!(params.basic.attrs, 0b1101);
        assert_eq!((params.discard.max_discard_sectors, params.discard.max_discard_segments), (262_144, 1));
    }
}
