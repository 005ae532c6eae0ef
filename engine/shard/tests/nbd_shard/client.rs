//! A plain NBD client: fixed newstyle, simple replies, one request at a time or many.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const FUA: u16 = 1;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) size: u64,
    cookie: u64,
}

/// Why an export could not be opened: the server's words.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl Client {
    pub(crate) fn connect(socket: &Path, export: &str) -> Result<Client, Refused> {
        let mut stream = UnixStream::connect(socket).expect("a server");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting[..8], b"NBDMAGIC");
        stream.write_all(&3_u32.to_be_bytes()).expect("client flags");
        // NBD_OPT_GO without information requests.
        let mut go = b"IHAVEOPT".to_vec();
        go.extend_from_slice(&7_u32.to_be_bytes());
        go.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        go.extend_from_slice(&(export.len() as u32).to_be_bytes());
        go.extend_from_slice(export.as_bytes());
        go.extend_from_slice(&[0, 0]);
        stream.write_all(&go).expect("an option");
        let mut size = 0;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).expect("an answer");
            let kind = u32::from_be_bytes(head[12..16].try_into().expect("4"));
            let mut data = vec![0; u32::from_be_bytes(head[16..20].try_into().expect("4")) as usize];
            stream.read_exact(&mut data).expect("its data");
            match kind {
                1 => {
                    return Ok(Client { stream, size, cookie: 0 });
                }
                3 if data[..2] == [0, 0] => size = u64::from_be_bytes(data[2..10].try_into().expect("8")),
                3 => {}
                _ => return Err(Refused(String::from_utf8_lossy(&data).into_owned())),
            }
        }
    }

    /// Sends a request without waiting for its reply; returns its cookie.
    pub(crate) fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        let mut bytes = Vec::new();
        self.request(&mut bytes, command, flags, offset, len);
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes).expect("a request");
        self.cookie
    }

    /// Sends writes of the same data to all these offsets in one piece.
    pub(crate) fn send_writes(&mut self, offsets: impl Iterator<Item = u64>, data: &[u8]) {
        let mut bytes = Vec::new();
        for offset in offsets {
            self.request(&mut bytes, WRITE, 0, offset, data.len() as u32);
            bytes.extend_from_slice(data);
        }
        self.stream.write_all(&bytes).expect("requests");
    }

    /// Appends a request's header.
    fn request(&mut self, bytes: &mut Vec<u8>, command: u16, flags: u16, offset: u64, len: u32) {
        self.cookie += 1;
        bytes.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&self.cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
    }

    /// The next reply without data: cookie and error.
    pub(crate) fn reply(&mut self) -> (u64, u32) {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().expect("4"));
        (u64::from_be_bytes(reply[8..16].try_into().expect("8")), error)
    }

    fn run(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Result<(), u32> {
        let cookie = self.send(command, flags, offset, len, data);
        let (answered, error) = self.reply();
        assert_eq!(answered, cookie);
        if error == 0 { Ok(()) } else { Err(error) }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> Result<(), u32> {
        self.run(WRITE, flags, offset, data.len() as u32, data)
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.run(READ, 0, offset, len as u32, &[])?;
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).expect("data");
        Ok(data)
    }

    pub(crate) fn flush(&mut self) -> Result<(), u32> {
        self.run(FLUSH, 0, 0, 0, &[])
    }

    pub(crate) fn range(&mut self, command: u16, offset: u64, len: u32) -> Result<(), u32> {
        self.run(command, 0, offset, len, &[])
    }

    /// Leaves properly.
    pub(crate) fn leave(mut self) {
        self.send(DISC, 0, 0, 0, &[]);
        let mut end = [0];
        assert_eq!(self.stream.read(&mut end).expect("an end"), 0, "the server closes");
    }
}
