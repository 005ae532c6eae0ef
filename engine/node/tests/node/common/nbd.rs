//! A small NBD client: one request at a time, and every wait has an end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Blocks of the test pattern.
const BLOCK_BYTES: usize = 4096;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection in transmission. Says good-bye when dropped.
pub(crate) struct NbdClient {
    stream: UnixStream,
    cookie: u64,
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

impl NbdClient {
    /// Opens an export. `Err`: the server's text.
    pub(crate) fn open(socket: &Path, export: &str) -> Result<NbdClient, String> {
        let mut stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(OPT_GO.to_be_bytes());
        hello.extend((export.len() as u32 + 6).to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend([0, 0]);
        stream.write_all(&hello).unwrap();
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).map_err(|error| error.to_string())?;
            let mut data = vec![0; be32(&head[16..]) as usize];
            stream.read_exact(&mut data).unwrap();
            match be32(&head[12..16]) {
                REP_ACK => return Ok(NbdClient { stream, cookie: 0 }),
                REP_INFO => {}
                _ => return Err(String::from_utf8_lossy(&data).into_owned()),
            }
        }
    }

    fn request(&mut self, command: u16, offset: u64, len: usize, data: &[u8]) -> u32 {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend((len as u32).to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(be32(&reply[..4]), 0x6744_6698);
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
        be32(&reply[4..8])
    }

    /// The stream under it, to send what a client never would.
    pub(crate) fn stream(&self) -> UnixStream {
        self.stream.try_clone().unwrap()
    }

    /// Reads at an offset.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.request(CMD_READ, offset, len, &[]), 0, "read at {offset}");
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    /// Writes at an offset.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.request(CMD_WRITE, offset, data.len(), data), 0, "write at {offset}");
    }

    /// Whether a write fails.
    pub(crate) fn write_error(&mut self, offset: u64, data: &[u8]) -> bool {
        self.request(CMD_WRITE, offset, data.len(), data) != 0
    }

    /// Whether a read fails.
    pub(crate) fn read_error(&mut self, offset: u64, len: usize) -> bool {
        self.request(CMD_READ, offset, len, &[]) != 0
    }

    /// Everything that was written is stable.
    pub(crate) fn flush(&mut self) {
        assert_eq!(self.request(CMD_FLUSH, 0, 0, &[]), 0, "flush");
    }

    /// Writes blocks that say where they lie and who wrote them.
    pub(crate) fn write_pattern(&mut self, blocks: std::ops::Range<u64>, tag: u8) {
        for block in blocks {
            self.write(block * BLOCK_BYTES as u64, &pattern(block, tag));
        }
        self.flush();
    }

    /// Checks blocks of [`NbdClient::write_pattern`].
    pub(crate) fn check_pattern(&mut self, blocks: std::ops::Range<u64>, tag: u8) {
        for block in blocks {
            assert!(
                self.read(block * BLOCK_BYTES as u64, BLOCK_BYTES) == pattern(block, tag),
                "block {block}, tag {tag}"
            );
        }
    }
}

fn pattern(block: u64, tag: u8) -> Vec<u8> {
    let mut data = vec![tag; BLOCK_BYTES];
    data[..8].copy_from_slice(&block.to_be_bytes());
    data
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(CMD_DISC.to_be_bytes());
        request.extend([0; 20]);
        // The server may be gone.
        self.stream.write_all(&request).ok();
    }
}
