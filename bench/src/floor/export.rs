//! What the primary exports, and the handshake about it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use zea_nbd::{ExportInfo, Exports, Handshake, Negotiated, OpenError, Progress};

use super::wire::BLOCK_BYTES;

/// Agrees with `client` on its use of a device of this size. `None` if it leaves instead.
///
/// # Errors
/// Failing IO, and a client that breaks the protocol or does not wait for the handshake's end.
pub(super) fn handshake(client: &mut UnixStream, device_bytes: u64) -> Result<Option<Negotiated>> {
    let exports = OneExport(device_bytes);
    let mut handshake = Handshake::new();
    client.write_all(&Handshake::GREETING)?;
    let (mut input, mut out) = ([0; 4096], Vec::new());
    loop {
        let length = client.read(&mut input)?;
        if length == 0 {
            return Ok(None);
        }
        let mut rest = &input[..length];
        while !rest.is_empty() {
            let (consumed, progress) = handshake.feed(&exports, rest, &mut out)?;
            rest = &rest[consumed..];
            client.write_all(&out)?;
            out.clear();
            match progress {
                Progress::NeedInput | Progress::Answered => {}
                Progress::Ready(negotiated) => {
                    ensure!(rest.is_empty(), "the client sends requests before it knows that it may");
                    return Ok(Some(negotiated));
                }
                Progress::Aborted => return Ok(None),
            }
        }
    }
}

/// A device of this many bytes, under any name.
struct OneExport(u64);

impl Exports for OneExport {
    fn list(&self) -> Vec<String> {
        vec!["floor".into()]
    }

    fn open(&self, name: &str) -> Result<ExportInfo, OpenError> {
        Ok(ExportInfo {
            name: name.into(),
            size_bytes: self.0,
            read_only: false,
            block_min: BLOCK_BYTES as u32,
            block_preferred: BLOCK_BYTES as u32,
            block_max: 64 * 1024,
            can_multi_conn: false,
            flush: true,
            fua: false,
            trim: false,
            write_zeroes: false,
            fast_zero: false,
            cache: false,
            rotational: false,
        })
    }
}
