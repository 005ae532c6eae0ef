//! Digests as they appear in packets, and how they are computed. When is the business of whoever holds the data.

use std::fmt;

use md5::Md5;
use rkyv::{Archive, Deserialize, Serialize};
use sha1::Sha1;
use sha2::digest::Digest as _;
use sha2::{Sha224, Sha256, Sha384, Sha512};

/// The longest digest of any algorithm (sha512), in bytes.
pub const MAX_DIGEST_LEN: usize = 64;

/// An algorithm for digests of data: the value of `data-integrity-alg`, `verify-alg` and `csums-alg`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Archive, Serialize, Deserialize)]
pub enum DigestAlg {
    /// crc32c
    Crc32c,
    /// md5
    Md5,
    /// sha1
    Sha1,
    /// sha224
    Sha224,
    /// sha256
    Sha256,
    /// sha384
    Sha384,
    /// sha512
    Sha512,
}

impl DigestAlg {
    /// All of them.
    pub const ALL: [DigestAlg; 7] = [
        DigestAlg::Crc32c,
        DigestAlg::Md5,
        DigestAlg::Sha1,
        DigestAlg::Sha224,
        DigestAlg::Sha256,
        DigestAlg::Sha384,
        DigestAlg::Sha512,
    ];

    /// The algorithm with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<DigestAlg> {
        DigestAlg::ALL.into_iter().find(|alg| alg.as_str() == name)
    }

    /// The name, as on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DigestAlg::Crc32c => "crc32c",
            DigestAlg::Md5 => "md5",
            DigestAlg::Sha1 => "sha1",
            DigestAlg::Sha224 => "sha224",
            DigestAlg::Sha256 => "sha256",
            DigestAlg::Sha384 => "sha384",
            DigestAlg::Sha512 => "sha512",
        }
    }

    /// The length of its digests in bytes.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            DigestAlg::Crc32c => 4,
            DigestAlg::Md5 => 16,
            DigestAlg::Sha1 => 20,
            DigestAlg::Sha224 => 28,
            DigestAlg::Sha256 => 32,
            DigestAlg::Sha384 => 48,
            DigestAlg::Sha512 => 64,
        }
    }

    /// The digest of `data`, written to the front of `out`.
    pub fn compute(self, data: &[u8], out: &mut [u8; MAX_DIGEST_LEN]) -> usize {
        fn put(out: &mut [u8; MAX_DIGEST_LEN], digest: &[u8]) -> usize {
            out[..digest.len()].copy_from_slice(digest);
            digest.len()
        }
        match self {
            DigestAlg::Crc32c => put(out, &crc32c::crc32c(data).to_le_bytes()),
            DigestAlg::Md5 => put(out, &Md5::digest(data)),
            DigestAlg::Sha1 => put(out, &Sha1::digest(data)),
            DigestAlg::Sha224 => put(out, &Sha224::digest(data)),
            DigestAlg::Sha256 => put(out, &Sha256::digest(data)),
            DigestAlg::Sha384 => put(out, &Sha384::digest(data)),
            DigestAlg::Sha512 => put(out, &Sha512::digest(data)),
        }
    }
}

/// A digest of 1..=64 bytes, the kernel hash's output as it is (crc32c: little endian;
/// `wire-protocol.md` section 10.2).
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Digest(Box<Bytes>);

#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
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
        assert_eq!(crc.as_slice().len(), DigestAlg::Crc32c.digest_len());
        assert_eq!(format!("{crc:?}"), "Digest(8941f998)");
    }

    #[test]
    fn wire_digests_of_known_answers() {
        let hex = |alg: DigestAlg, data: &[u8]| {
            let mut out = [0; MAX_DIGEST_LEN];
            let len = alg.compute(data, &mut out);
            assert_eq!(len, alg.digest_len(), "{alg:?}");
            assert_eq!(DigestAlg::from_name(alg.as_str()), Some(alg));
            out[..len].iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        // The check value of crc32c is e3069283; on the wire it is little endian.
        assert_eq!(hex(DigestAlg::Crc32c, b"123456789"), "839206e3");
        assert_eq!(hex(DigestAlg::Md5, b"abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(DigestAlg::Sha1, b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hex(DigestAlg::Sha224, b"abc"), "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(DigestAlg::Sha256, b"abc"), sha256);
        assert!(hex(DigestAlg::Sha384, b"abc").starts_with("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163"));
        assert!(hex(DigestAlg::Sha512, b"abc").starts_with("ddaf35a193617abacc417349ae20413112e6fa4e89a97ea2"));
        assert_eq!(DigestAlg::from_name("rot13"), None);
    }
}
