//! The driver's structures and numbers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest queue.
pub const MAX_DEPTH: u16 = 4096;

/// A command of the control device; in the second half of its submission.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct CtrlCmd {
    pub(crate) device: u32,
    /// [`NO_QUEUE`] where it is about none.
    pub(crate) queue: u16,
    /// Length of what `addr` names.
    pub(crate) len: u16,
    pub(crate) addr: u64,
    /// A number that the command takes.
    pub(crate) value: u64,
    pub(crate) path_len: u16,
    pub(crate) pad: u16,
    pub(crate) reserved: u32,
}

pub(crate) const NO_QUEUE: u16 = u16::MAX;

/// What a device is made from, and what the driver knows of one.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DevInfo {
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    pub(crate) state: u16,
    pub(crate) io_desc_size: u16,
    pub(crate) max_io_buf_bytes: u32,
    pub(crate) device: u32,
    pub(crate) pid: i32,
    pub(crate) pad: u32,
    pub(crate) flags: u64,
    /// The driver keeps it and does not look at it.
    pub(crate) tag: u64,
    pub(crate) owner_uid: u32,
    pub(crate) owner_gid: u32,
    pub(crate) reserved: [u64; 2],
}

/// Parameters of a disk: the parts that Zea sets, and the numbers of the devices.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Params {
    /// Bytes that the two sides have in common.
    pub(crate) len: u32,
    /// Which of the parts are set.
    pub(crate) types: u32,
    pub(crate) basic: ParamBasic,
    pub(crate) discard: ParamDiscard,
    pub(crate) devt: ParamDevt,
    /// The next part begins here.
    pub(crate) rest: [u8; 4],
}

/// Bytes of [`Params`] that are parts.
pub(crate) const PARAMS_LEN: u32 = 76;

pub(crate) const PARAM_BASIC: u32 = 1 << 0;
pub(crate) const PARAM_DISCARD: u32 = 1 << 1;

pub(crate) const ATTR_READ_ONLY: u32 = 1 << 0;
pub(crate) const ATTR_ROTATIONAL: u32 = 1 << 1;
pub(crate) const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
pub(crate) const ATTR_FUA: u32 = 1 << 3;

#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ParamBasic {
    pub(crate) attrs: u32,
    pub(crate) logical_bs_shift: u8,
    pub(crate) physical_bs_shift: u8,
    pub(crate) io_opt_shift: u8,
    pub(crate) io_min_shift: u8,
    pub(crate) max_sectors: u32,
    pub(crate) chunk_sectors: u32,
    pub(crate) dev_sectors: u64,
    pub(crate) virt_boundary_mask: u64,
}

#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ParamDiscard {
    pub(crate) alignment: u32,
    pub(crate) granularity: u32,
    pub(crate) max_discard_sectors: u32,
    pub(crate) max_write_zeroes_sectors: u32,
    pub(crate) max_discard_segments: u16,
    pub(crate) reserved: u16,
}

#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ParamDevt {
    pub(crate) char_major: u32,
    pub(crate) char_minor: u32,
    pub(crate) disk_major: u32,
    pub(crate) disk_minor: u32,
}

/// A request, where the driver shows it: one for each tag.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct IoDesc {
    /// Operation in the low 8 bits, flags above.
    pub(crate) op_flags: u32,
    pub(crate) sectors: u32,
    pub(crate) sector: u64,
    pub(crate) addr: u64,
}

/// A command of a queue.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IoCmd {
    pub(crate) queue: u16,
    pub(crate) tag: u16,
    pub(crate) result: i32,
    pub(crate) addr: u64,
}

pub(crate) const OP_READ: u32 = 0;
pub(crate) const OP_WRITE: u32 = 1;
pub(crate) const OP_FLUSH: u32 = 2;
pub(crate) const OP_DISCARD: u32 = 3;
pub(crate) const OP_WRITE_ZEROES: u32 = 5;

pub(crate) const IO_FUA: u32 = 1 << 13;
pub(crate) const IO_NO_UNMAP: u32 = 1 << 15;

/// Where the data of requests begins in the character device's file.
pub(crate) const IO_BUF_OFFSET: u64 = 0x8000_0000;
pub(crate) const TAG_SHIFT: u32 = 25;

/// The driver's commands are numbered as ioctls are: direction, size of the argument, its letter, a number.
const fn encode(direction: u32, size: usize, number: u32) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;

const fn ctrl(direction: u32, number: u32) -> u32 {
    encode(direction, size_of::<CtrlCmd>(), number)
}

const fn io(number: u32) -> u32 {
    encode(READ_WRITE, size_of::<IoCmd>(), number)
}

pub(crate) const GET_DEV_INFO: u32 = ctrl(READ, 0x02);
pub(crate) const ADD_DEV: u32 = ctrl(READ_WRITE, 0x04);
pub(crate) const DEL_DEV: u32 = ctrl(READ_WRITE, 0x05);
pub(crate) const START_DEV: u32 = ctrl(READ_WRITE, 0x06);
pub(crate) const STOP_DEV: u32 = ctrl(READ_WRITE, 0x07);
pub(crate) const SET_PARAMS: u32 = ctrl(READ_WRITE, 0x08);
pub(crate) const GET_PARAMS: u32 = ctrl(READ, 0x09);
pub(crate) const START_USER_RECOVERY: u32 = ctrl(READ_WRITE, 0x10);
pub(crate) const END_USER_RECOVERY: u32 = ctrl(READ_WRITE, 0x11);
pub(crate) const GET_FEATURES: u32 = ctrl(READ, 0x13);
pub(crate) const UPDATE_SIZE: u32 = ctrl(READ_WRITE, 0x15);

pub(crate) const FETCH_REQ: u32 = io(0x20);
pub(crate) const COMMIT_AND_FETCH_REQ: u32 = io(0x21);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn ublk_structures_are_laid_out_as_the_driver_has_them() {
        assert_eq!(size_of::<CtrlCmd>(), 32);
        assert_eq!((offset_of!(CtrlCmd, addr), offset_of!(CtrlCmd, value), offset_of!(CtrlCmd, path_len)), (8, 16, 24));
        assert_eq!(size_of::<DevInfo>(), 64);
        assert_eq!(
            (offset_of!(DevInfo, flags), offset_of!(DevInfo, tag), offset_of!(DevInfo, owner_uid)),
            (24, 32, 40)
        );
        assert_eq!((size_of::<ParamBasic>(), size_of::<ParamDiscard>(), size_of::<ParamDevt>()), (32, 20, 16));
        assert_eq!((offset_of!(Params, basic), offset_of!(Params, discard), offset_of!(Params, devt)), (8, 40, 60));
        assert_eq!(offset_of!(Params, rest), PARAMS_LEN as usize);
        assert_eq!((offset_of!(ParamBasic, max_sectors), offset_of!(ParamBasic, dev_sectors)), (8, 16));
        assert_eq!((size_of::<IoDesc>(), offset_of!(IoDesc, sector)), (24, 8));
        assert_eq!((size_of::<IoCmd>(), offset_of!(IoCmd, result), offset_of!(IoCmd, addr)), (16, 4, 8));
    }

    #[test]
    fn ublk_commands_have_the_numbers_of_the_driver() {
        assert_eq!(ADD_DEV, 0xc020_7504);
        assert_eq!(GET_FEATURES, 0x8020_7513);
        assert_eq!(START_DEV, 0xc020_7506);
        assert_eq!(UPDATE_SIZE, 0xc020_7515);
        assert_eq!((FETCH_REQ, COMMIT_AND_FETCH_REQ), (0xc010_7520, 0xc010_7521));
    }
}
