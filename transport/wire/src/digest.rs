//! Digests as they appear in packets. Computing them is the business of whoever holds the data.

use std::fmt;

/// The longest digest of any algorithm (sha512), in bytes.
pub const MAX_DIGEST_LEN: usize = 64;

/// The digest length in bytes of an algorithm as named in `data-integrity-alg`, `verify-alg` and
/// `csums-alg`; 0 for the empty name (none), `None` for one that is not known.
#[must_use]
pub fn digest_len(name: &str) -> Option<u8> {
    Some(match name {
        "" => 0,
        "crc32c" | "crc32" => 4,
        "md5" => 16,
        "sha1" => 20,
        "sha224" => 28,
        "sha256" => 32,
        "sha384" => 48,
        "sha512" => 64,
        _ => return None,
    })
}

/// A digest of 1..=64 bytes, the kernel hash's output as it is (crc32c: little endian;
/// `wire-protocol.md` section 10.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Digest(Box<Bytes>);

#[derive(Clone, PartialEq, Eq)]
struct Bytes {
    len: u8,
    bytes: [u8; MAX_DIGEST_LEN],
}

impl Digest {
    /// A digest of these bytes, `None` unless there are 1..=64.
    #[must_use]
    pub fn new(digest: &[u8]) -> Option<Digest> {
        if digest.is_empty() || digest.len() > MAX_DIGEST_LEN {
            return None;
        }
        let mut bytes = [0; MAX_DIGEST_LEN];
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Digest(Box::new(Bytes { len: digest.len() as u8, bytes })))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0.bytes[..usize::from(self.0.len)]
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(")?;
        self.as_slice().iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_digests_have_one_to_64_bytes() {
        assert_eq!(Digest::new(&[]), None);
        assert_eq!(Digest::new(&[0; 65]), None);
        let crc = Digest::new(&[0x89, 0x41, 0xf9, 0x98]).unwrap();
        assert_eq!(crc.as_slice().len(), usize::from(digest_len("crc32c").unwrap()));
        assert_eq!(format!("{crc:?}"), "Digest(8941f998)");
        assert_eq!(digest_len("rot13"), None);
    }
}
