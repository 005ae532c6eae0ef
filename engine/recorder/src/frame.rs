//! A frame: length, checksum, body. What is torn or damaged ends the file.

use thiserror::Error;

use crate::bytes::{Reader, put_number};
use crate::limits::MAX_FRAME_BYTES;

/// Why a file ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Cut {
    #[error("a frame that is not complete")]
    Torn,
    #[error("a frame with a wrong checksum")]
    Checksum,
}

fn checksum(body: &[u8]) -> u32 {
    // The length is in it: zeroes are no frame.
    crc32c::crc32c_append(crc32c::crc32c(&(body.len() as u64).to_le_bytes()), body)
}

/// Appends a frame.
pub(crate) fn put(out: &mut Vec<u8>, body: &[u8]) {
    put_number(out, body.len() as u64);
    out.extend_from_slice(&checksum(body).to_le_bytes());
    out.extend_from_slice(body);
}

/// The next frame's body; `None` at the end.
pub(crate) fn next<'a>(rest: &mut Reader<'a>) -> Option<Result<&'a [u8], Cut>> {
    if rest.0.is_empty() {
        return None;
    }
    let mut r = *rest;
    let parts = r.number().ok().filter(|len| *len <= MAX_FRAME_BYTES).and_then(|len| {
        let sum = r.take(4).ok()?;
        Some((sum, r.take(usize::try_from(len).ok()?).ok()?))
    });
    let Some((sum, body)) = parts else {
        return Some(Err(Cut::Torn));
    };
    if sum != checksum(body).to_le_bytes() {
        return Some(Err(Cut::Checksum));
    }
    *rest = r;
    Some(Ok(body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> (Vec<Vec<u8>>, Option<Cut>) {
        let (mut bodies, mut rest) = (Vec::new(), Reader(bytes));
        loop {
            match next(&mut rest) {
                None => return (bodies, None),
                Some(Err(cut)) => return (bodies, Some(cut)),
                Some(Ok(body)) => bodies.push(body.to_vec()),
            }
        }
    }

    proptest! {
        #[test]
        fn recorder_frames_are_cut_where_they_are_damaged(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
            at in any::<prop::sample::Index>(),
            flip in 0..8u8,
        ) {
            let (mut bytes, mut ends) = (Vec::new(), Vec::new());
            for body in &bodies {
                put(&mut bytes, body);
                ends.push(bytes.len());
            }
            prop_assert_eq!(all(&bytes), (bodies.clone(), None));
            let at = at.index(bytes.len());
            let whole = ends.iter().filter(|end| **end <= at).count();
            // Cut off.
            let (found, cut) = all(&bytes[..at]);
            prop_assert_eq!(&found, &bodies[..whole]);
            prop_assert_eq!(cut.is_none(), at == 0 || ends.contains(&at));
            // One bit is wrong.
            bytes[at] ^= 1 << flip;
            let (found, cut) = all(&bytes);
            prop_assert_eq!(&found, &bodies[..whole]);
            prop_assert!(cut.is_some());
        }

        #[test]
        fn recorder_frames_of_anything_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes);
        }
    }

    #[test]
    fn recorder_zeroes_are_no_frames() {
        assert_eq!(all(&[0; 100]), (vec![], Some(Cut::Checksum)));
    }
}
