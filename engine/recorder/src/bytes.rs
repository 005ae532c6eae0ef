//! Numbers of variable length, and a reader that never reads beyond its end.

use thiserror::Error;

/// The bytes end in the middle of a value, or are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an entry ends early")]
pub(crate) struct Short;

/// Bytes that [`put_fields`] appends at most.
const MAX_FIELDS: usize = 64;

/// Appends short fields of an entry, at most 64 bytes. Room for all of them is made at once: that costs less than to append
/// each of them.
#[inline]
pub(crate) fn put_fields<T>(out: &mut Vec<u8>, put: impl FnOnce(&mut Fields<'_>) -> T) -> T {
    let begin = out.len();
    out.extend_from_slice(&[0; MAX_FIELDS]);
    let mut fields = Fields { room: out.last_chunk_mut().expect("was appended"), len: 0 };
    let result = put(&mut fields);
    let end = begin + fields.len;
    out.truncate(end);
    result
}

/// See [`put_fields`].
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    room: &'a mut [u8; MAX_FIELDS],
    len: usize,
}

impl Fields<'_> {
    #[inline]
    pub(crate) fn byte(&mut self, byte: u8) {
        self.room[self.len] = byte;
        self.len += 1;
    }

    /// A number: seven bits a byte, lowest first, the top bit says that more follow.
    #[inline]
    pub(crate) fn number(&mut self, mut value: u64) {
        while value > 0x7f {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }
}

/// A cursor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Result<u8, Short> {
        let (first, rest) = self.0.split_first().ok_or(Short)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// What [`put_bytes`] wrote.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let len = self.small()?;
        self.take(len)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Short> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(Short);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Short)
    }

    /// A number that fits a smaller type.
    pub(crate) fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Short> {
        T::try_from(self.number()?).map_err(|_| Short)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn recorder_numbers_come_back(values in prop::collection::vec(any::<u64>().prop_flat_map(|v| (0..64u32).prop_map(move |s| v >> s)), 0..20)) {
            let mut out = Vec::new();
            values.iter().for_each(|v| put_fields(&mut out, |fields| fields.number(*v)));
            let mut r = Reader(&out);
            for value in values {
                prop_assert_eq!(r.number(), Ok(value));
            }
            prop_assert_eq!(r.byte(), Err(Short));
        }

        #[test]
        fn recorder_readers_end_at_the_end(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut r = Reader(&bytes);
            while r.number().is_ok() || r.take(1).is_ok() {}
            let _ = r.small::<u8>();
        }
    }

    #[test]
    fn recorder_numbers_beyond_64_bits_are_none() {
        assert_eq!(Reader(&[0xff; 11]).number(), Err(Short));
        assert_eq!(Reader(&[0x80; 9]).number(), Err(Short));
        let mut most = Vec::new();
        put_fields(&mut most, |fields| fields.number(u64::MAX));
        assert_eq!(Reader(&most).number(), Ok(u64::MAX));
    }
}
