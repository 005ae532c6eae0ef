//! A small NBD client: one export on a Unix socket, one request at a time.
//!
//! Of `doc/proto.md` (NetworkBlockDevice/nbd) it uses the fixed newstyle handshake with `NBD_OPT_GO`, and simple replies.
//! It trusts a server with nothing: lengths are bounded, answers are checked, and silence ends in an error.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Longest option reply that is read.
const MAX_OPTION_REPLY: u32 = 64 * 1024;
/// Most option replies before the last one.
const MAX_OPTION_REPLIES: usize = 64;

const FLAG_SEND_FLUSH: u16 = 1 << 2;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// Where an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    /// The server's socket.
    pub(crate) socket: PathBuf,
    /// The export's name.
    pub(crate) name: String,
}

impl Export {
    /// As other clients want it to be named.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.name, self.socket.display())
    }
}

/// An export that is open.
#[derive(Debug)]
pub(crate) struct NbdClient {
    stream: UnixStream,
    size_bytes: u64,
    next_cookie: u64,
}

impl NbdClient {
    /// Opens an export, which must be able to flush.
    pub(crate) fn open(export: &Export) -> Result<NbdClient> {
        let stream = connect(&export.socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut client = NbdClient { stream, size_bytes: 0, next_cookie: 1 };
        client.negotiate(&export.name).with_context(|| format!("cannot open the export {}", export.name))?;
        Ok(client)
    }

    /// Size of the export.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills a buffer from this offset.
    pub(crate) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.request(CMD_READ, offset, u32::try_from(buffer.len())?, &[])?;
        Ok(self.stream.read_exact(buffer)?)
    }

    /// Writes; stable only after a [`NbdClient::flush`].
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.request(CMD_WRITE, offset, u32::try_from(data.len())?, data)
    }

    /// Makes every write that was answered stable.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.request(CMD_FLUSH, 0, 0, &[])
    }

    fn negotiate(&mut self, name: &str) -> Result<()> {
        ensure!(self.u64()? == NBD_MAGIC, "this is no NBD server");
        ensure!(self.u64()? == OPTION_MAGIC, "the server does not speak newstyle");
        let flags = self.u16()?;
        ensure!(flags & FLAG_FIXED_NEWSTYLE != 0, "the server does not speak fixed newstyle");
        let answer = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        let mut message = answer.to_be_bytes().to_vec();
        message.extend(go_option(name)?);
        self.stream.write_all(&message)?;
        let mut transmission_flags = None;
        for _ in 0..MAX_OPTION_REPLIES {
            let (kind, payload) = self.option_reply()?;
            match kind {
                REP_ACK => {
                    let flags: u16 = transmission_flags.context("the server did not describe the export")?;
                    ensure!(flags & FLAG_SEND_FLUSH != 0, "the export cannot flush");
                    return Ok(());
                }
                REP_INFO => {
                    if let Some((size, flags)) = export_info(&payload)? {
                        self.size_bytes = size;
                        transmission_flags = Some(flags);
                    }
                }
                _ if kind & REP_ERROR != 0 => bail!("refused ({:#x}): {}", kind, String::from_utf8_lossy(&payload)),
                _ => bail!("an option reply of kind {kind:#x} does not belong here"),
            }
        }
        bail!("more than {MAX_OPTION_REPLIES} option replies")
    }

    fn option_reply(&mut self) -> Result<(u32, Vec<u8>)> {
        ensure!(self.u64()? == OPTION_REPLY_MAGIC, "no option reply");
        ensure!(self.u32()? == OPT_GO, "a reply to another option");
        let kind = self.u32()?;
        let length = self.u32()?;
        ensure!(length <= MAX_OPTION_REPLY, "an option reply of {length} bytes");
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((kind, payload))
    }

    /// Sends a request and reads the head of its reply.
    fn request(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> Result<()> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut message = request_head(command, cookie, offset, length);
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        ensure!(self.u32()? == SIMPLE_REPLY_MAGIC, "no simple reply");
        let error = self.u32()?;
        ensure!(self.u64()? == cookie, "a reply to another request");
        ensure!(error == 0, "the server failed a request: {}", std::io::Error::from_raw_os_error(error.cast_signed()));
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).context("the server is gone or silent")?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.bytes()?))
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // A courtesy: a server that is gone does not need it.
        let farewell = request_head(CMD_DISCONNECT, self.next_cookie, 0, 0);
        let _ = self.stream.write_all(&farewell);
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))
}

/// `NBD_OPT_GO` without information requests: the server gives `NBD_INFO_EXPORT` in any case.
fn go_option(name: &str) -> Result<Vec<u8>> {
    let name_length = u32::try_from(name.len())?;
    let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
    option.extend(OPT_GO.to_be_bytes());
    option.extend((name_length + 6).to_be_bytes());
    option.extend(name_length.to_be_bytes());
    option.extend(name.as_bytes());
    option.extend(0_u16.to_be_bytes());
    Ok(option)
}

fn request_head(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
    head.extend(0_u16.to_be_bytes());
    head.extend(command.to_be_bytes());
    head.extend(cookie.to_be_bytes());
    head.extend(offset.to_be_bytes());
    head.extend(length.to_be_bytes());
    head
}

/// Size and transmission flags, if this piece of information is about them.
fn export_info(payload: &[u8]) -> Result<Option<(u64, u16)>> {
    let Some((kind, rest)) = payload.split_first_chunk::<2>() else {
        bail!("a piece of information of {} bytes", payload.len());
    };
    if u16::from_be_bytes(*kind) != INFO_EXPORT {
        return Ok(None);
    }
    let parts = rest.split_first_chunk::<8>().and_then(|(size, flags)| Some((*size, <[u8; 2]>::try_from(flags).ok()?)));
    let (size, flags) = parts.context("export information of a wrong length")?;
    Ok(Some((u64::from_be_bytes(size), u16::from_be_bytes(flags))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Serves one client with these bytes, each after as many were read as the number before it says.
    fn serve(script: Vec<(usize, Vec<u8>)>) -> (tempfile::TempDir, Export) {
        let dir = tempfile::tempdir().unwrap();
        let export = Export { socket: dir.path().join("s"), name: "r0/0".into() };
        let listener = UnixListener::bind(&export.socket).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for (wanted, answer) in script {
                stream.read_exact(&mut vec![0; wanted]).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        (dir, export)
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = NBD_MAGIC.to_be_bytes().to_vec();
        bytes.extend(OPTION_MAGIC.to_be_bytes());
        bytes.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        bytes
    }

    fn option_reply(kind: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(OPT_GO.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn info(size: u64, flags: u16) -> Vec<u8> {
        let mut bytes = INFO_EXPORT.to_be_bytes().to_vec();
        bytes.extend(size.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes
    }

    fn accepted() -> Vec<u8> {
        let mut bytes = option_reply(REP_INFO, &info(1 << 20, FLAG_SEND_FLUSH | 1));
        bytes.extend(option_reply(REP_ACK, &[]));
        bytes
    }

    fn reply(error: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    /// Flags, option head, name length, name, number of information requests.
    const GO: usize = 4 + 16 + 4 + 4 + 2;
    const HEAD: usize = 28;

    #[test]
    fn demo_nbd_reads_writes_and_flushes() {
        let (_dir, export) = serve(vec![
            (0, greeting()),
            (GO, accepted()),
            (HEAD + 3, reply(0, 1, &[])),
            (HEAD, reply(0, 2, &[])),
            (HEAD, reply(0, 3, b"abcd")),
            (HEAD, reply(5, 4, &[])),
        ]);
        let mut client = NbdClient::open(&export).unwrap();
        assert_eq!(client.size_bytes(), 1 << 20);
        client.write(0, b"xyz").unwrap();
        client.flush().unwrap();
        let mut buffer = [0; 4];
        client.read(512, &mut buffer).unwrap();
        assert_eq!(&buffer, b"abcd");
        let error = client.flush().unwrap_err().to_string();
        assert!(error.contains("os error 5"), "{error}");
    }

    #[test]
    fn demo_nbd_names_what_is_wrong_with_a_server() {
        let refused = option_reply(REP_ERROR | 6, b"not Primary");
        let no_flush = [option_reply(REP_INFO, &info(1, 1)), option_reply(REP_ACK, &[])].concat();
        for (answer, message) in [
            (refused, "not Primary"),
            (no_flush, "cannot flush"),
            (option_reply(REP_ACK, &[]), "did not describe"),
            (option_reply(REP_INFO, &[0]), "information of 1 bytes"),
            (option_reply(REP_INFO, &[0, 0, 1]), "wrong length"),
            (option_reply(77, &[]), "does not belong"),
            (vec![0; 20], "no option reply"),
        ] {
            let (_dir, export) = serve(vec![(0, greeting()), (GO, answer)]);
            let error = format!("{:#}", NbdClient::open(&export).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn demo_nbd_notices_that_the_server_is_gone() {
        let (_dir, export) = serve(vec![(0, greeting()), (GO, accepted())]);
        let mut client = NbdClient::open(&export).unwrap();
        assert!(client.flush().is_err());
        let (_dir, export) = serve(vec![(0, greeting()), (GO, accepted()), (HEAD, reply(0, 9, &[]))]);
        let mut client = NbdClient::open(&export).unwrap();
        assert!(client.flush().unwrap_err().to_string().contains("another request"));
    }
}
