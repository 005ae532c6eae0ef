//! How a packet's body is read and written.

use super::DecodeError;
use crate::bytes::{Field, Reader};
use crate::features::Negotiated;
use crate::header::HeaderFormat;

/// What a body's layout depends on, apart from its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) neg: &'a Negotiated,
    pub(crate) format: HeaderFormat,
    pub(crate) command: u16,
    /// Digest bytes in front of bulk payload in this direction.
    pub(crate) digest_len: usize,
}

/// The lengths a body may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Least bytes behind the header.
    pub(crate) min: usize,
    /// Most bytes behind the header.
    pub(crate) max: usize,
    /// For packets with bulk payload: bytes in front of it. `None`: the whole body is decoded.
    pub(crate) bulk_prefix: Option<usize>,
}

impl Shape {
    pub(crate) const fn fixed(len: usize) -> Shape {
        Shape { min: len, max: len, bulk_prefix: None }
    }

    pub(crate) const fn variable(min: usize, max: usize) -> Shape {
        Shape { min, max, bulk_prefix: None }
    }
}

/// No packet without bulk payload is longer than this, header included (`DRBD_SOCKET_BUFFER_SIZE`).
pub(crate) const MAX_PACKET: usize = 4096;

/// The typed content of a packet.
pub(crate) trait Body: Sized {
    fn shape(ctx: &Context<'_>) -> Shape;
    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError>;
    fn put(&self, out: &mut Vec<u8>, ctx: &Context<'_>);
}

/// Structs of fixed layout, with the limits on their values.
pub(crate) trait Checked: Field {
    fn check(&self, _ctx: &Context<'_>) -> Result<(), DecodeError> {
        Ok(())
    }
}

impl<T: Checked> Body for T {
    fn shape(_: &Context<'_>) -> Shape {
        Shape::fixed(Self::LEN)
    }

    fn get(r: &mut Reader<'_>, ctx: &Context<'_>) -> Result<Self, DecodeError> {
        let value: Self = Field::get(r)?;
        value.check(ctx)?;
        Ok(value)
    }

    fn put(&self, out: &mut Vec<u8>, _: &Context<'_>) {
        Field::put(self, out);
    }
}

/// The largest sector number that a byte offset in a signed 64 bit number can name, plus one.
const MAX_SECTORS: u64 = 1 << 54;

/// Checks that a range is made of whole sectors, is at most `max` bytes and ends at a possible place.
pub(crate) fn check_range(sector: u64, size: u32, min: u32, max: u32) -> Result<(), DecodeError> {
    if size < min || size > max || !size.is_multiple_of(512) {
        return Err(DecodeError::BadSize { size, max });
    }
    match sector.checked_add(u64::from(size / 512)) {
        Some(end) if end <= MAX_SECTORS => Ok(()),
        _ => Err(DecodeError::BadSector { sector }),
    }
}
