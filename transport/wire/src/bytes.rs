//! Big endian fields over byte slices.

use crate::ids::{BlockId, NodeId, NodeMask};
use crate::packet::DecodeError;

/// A cursor over the body of one packet. Reading past the end is [`DecodeError::Truncated`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Reader { body, at: 0 }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.body.len() - self.at
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.saturating_add(len);
        let bytes = self.body.get(self.at..end).ok_or(DecodeError::Truncated { need: end, have: self.body.len() })?;
        self.at = end;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn skip(&mut self, len: usize) -> Result<(), DecodeError> {
        self.take(len).map(|_| ())
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.body[self.at..];
        self.at = self.body.len();
        rest
    }
}

/// A snapshot holds a number that is no value of its type.
#[derive(Debug, thiserror::Error)]
#[error("no {0}")]
pub(crate) struct NoSuchValue(pub(crate) &'static str);

/// A value with a fixed size on the wire.
pub(crate) trait Field: Sized {
    /// Bytes on the wire.
    const LEN: usize;
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError>;
    fn put(&self, out: &mut Vec<u8>);
}

macro_rules! int_field {
    ($($int:ty),+) => {
        $( impl Field for $int {
            const LEN: usize = size_of::<$int>();
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                r.array().map(<$int>::from_be_bytes)
            }
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        } )+
    };
}
int_field!(u8, u16, u32, u64, i32);

macro_rules! newtype_field {
    ($($name:path: $int:ty),+ $(,)?) => {
        $( impl Field for $name {
            const LEN: usize = size_of::<$int>();
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                <$int>::get(r).map($name)
            }
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
        } )+
    };
}
newtype_field!(
    BlockId: u64,
    NodeMask: u64,
    crate::features::Features: u32,
    crate::flags::ConnFlags: u32,
    crate::flags::DdsFlags: u16,
    crate::flags::DpFlags: u32,
    crate::flags::UuidFlags: u64,
    crate::state::StateBits: u32,
);

/// Node ids are 32 bit numbers on the wire, except in two-phase commit requests.
impl Field for NodeId {
    const LEN: usize = 4;
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = u32::get(r)?;
        NodeId::from_wire(id).ok_or(DecodeError::BadNodeId { id: i64::from(id) })
    }
    fn put(&self, out: &mut Vec<u8>) {
        u32::from(self.0).put(out);
    }
}

/// Booleans of one byte; anything but zero is true.
impl Field for bool {
    const LEN: usize = 1;
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        u8::get(r).map(|b| b != 0)
    }
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
}
