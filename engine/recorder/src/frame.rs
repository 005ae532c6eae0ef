//! A frame: length, checksum, body; one frame is as much as is written at once. What is torn or damaged ends the file.

use thiserror::Error;

use crate::bytes::Reader;
use crate::limits::MAX_FRAME_BYTES;

/// Why a file ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Cut {
    #[error("a frame that is not complete")]
    Torn,
    #[error("a frame with a wrong checksum")]
    Checksum,
}

/// Bytes in front of a body: its length (64 bits) and the checksum of both (32 bits), little endian.
const HEAD: usize = 12;

/// Begins a frame; its body is appended next.
pub(crate) fn begin(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; HEAD]);
    at
}

/// Ends the frame that begins at `at`: its body is what was appended since.
pub(crate) fn end(out: &mut [u8], at: usize) {
    let (head, body) = out[at..].split_at_mut(HEAD);
    head[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
    // The length is in it: zeroes are no frame.
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..8]), body);
    head[8..].copy_from_slice(&sum.to_le_bytes());
}

/// Appends a frame.
pub(crate) fn put(out: &mut Vec<u8>, body: &[u8]) {
    let at = begin(out);
    out.extend_from_slice(body);
    end(out, at);
}

/// The next frame's body; `None` at the end.
pub(crate) fn next<'a>(rest: &mut Reader<'a>) -> Option<Result<&'a [u8], Cut>> {
    if rest.0.is_empty() {
        return None;
    }
    let Some((len, sum, body)) = split(rest.0) else {
        return Some(Err(Cut::Torn));
    };
    if sum != crc32c::crc32c_append(crc32c::crc32c(len), body).to_le_bytes() {
        return Some(Err(Cut::Checksum));
    }
    rest.0 = &rest.0[HEAD + body.len()..];
    Some(Ok(body))
}

/// Length, checksum and body of the frame at the beginning, as long as they are said to be.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (len, sum) = head.split_at(8);
    let bytes = u64::from_le_bytes(len.try_into().expect("8 bytes"));
    if bytes > MAX_FRAME_BYTES {
        return None;
    }
    Some((len, sum, rest.get(..usize::try_from(bytes).ok()?)?))
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
