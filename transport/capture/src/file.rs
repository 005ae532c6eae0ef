//! Frames out of a file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use pcap_parser::pcapng::Block;
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Linktype, PcapBlockOwned, PcapError, create_reader};
use thiserror::Error;

use crate::limits::MAX_FRAME_BYTES;

/// Why a recording cannot be read on.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Neither pcap nor pcapng.
    #[error("{}: not a pcap or pcapng file", path.display())]
    NotACapture {
        /// The file.
        path: PathBuf,
    },
    /// It ends within a frame: the recorder was killed, or is still at work.
    #[error("{}: ends in the middle of frame {frame}", path.display())]
    CutShort {
        /// The file.
        path: PathBuf,
        /// The number of the incomplete frame.
        frame: u64,
    },
    /// A frame's head makes no sense, or it is larger than [`MAX_FRAME_BYTES`].
    #[error("{}: frame {frame} cannot be read: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The number of the frame.
        frame: u64,
        /// What is wrong.
        what: String,
    },
}

/// What a frame begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Ip,
    /// Four bytes of address family (BSD loopback).
    Loopback,
    /// Linux cooked header, 16 bytes.
    Sll,
    /// Linux cooked header of version 2, 20 bytes.
    Sll2,
    /// Something that carries no DRBD.
    Other(i32),
}

impl From<Linktype> for Link {
    fn from(link: Linktype) -> Self {
        match link {
            Linktype::ETHERNET => Link::Ethernet,
            Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 | Linktype(12) => Link::Ip,
            Linktype::NULL | Linktype::LOOP => Link::Loopback,
            Linktype::LINUX_SLL => Link::Sll,
            Linktype(276) => Link::Sll2,
            Linktype(other) => Link::Other(other),
        }
    }
}

/// A frame of a recording.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Counted from 1, as tcpdump and Wireshark do.
    pub number: u64,
    /// Since the epoch.
    pub time: Duration,
    /// What it begins with.
    pub link: Link,
    /// What was recorded of it.
    pub bytes: Vec<u8>,
    /// Bytes of it that were not recorded.
    pub cut: usize,
}

/// How an interface of a pcapng file tells time, and what its frames begin with.
#[derive(Clone, Copy)]
struct Interface {
    link: Link,
    units_per_second: u64,
    offset_s: i64,
}

/// Gives what a compressed file has that was cut short; the frame that it ends in tells.
struct Unzip<R>(MultiGzDecoder<R>);

impl<R: BufRead> Read for Unzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            result => result,
        }
    }
}

/// The frames of a file in order.
pub struct Frames {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator>,
    /// Of the file (pcap) or of its section (pcapng).
    interfaces: Vec<Interface>,
    number: u64,
    ended: bool,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("path", &self.path).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Frames {
    /// Opens a pcap or pcapng file, compressed by gzip or not.
    ///
    /// # Errors
    /// It cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Frames, CaptureError> {
        let failed = |error| CaptureError::File { path: path.to_owned(), error };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let zipped = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let plain: Box<dyn Read + Send> =
            if zipped { Box::new(Unzip(MultiGzDecoder::new(file))) } else { Box::new(file) };
        let reader = create_reader(2 * MAX_FRAME_BYTES, plain)
            .map_err(|_| CaptureError::NotACapture { path: path.to_owned() })?;
        Ok(Frames { path: path.to_owned(), reader, interfaces: Vec::new(), number: 0, ended: false })
    }

    fn damaged(&self, what: impl Into<String>) -> CaptureError {
        CaptureError::Damaged { path: self.path.clone(), frame: self.number + 1, what: what.into() }
    }

    /// The next frame, `None` at the end.
    fn read(&mut self) -> Result<Option<Frame>, CaptureError> {
        // Bytes that were there when more were asked for: no more of them means the end of the file.
        let mut asked_with = None;
        loop {
            let number = self.number + 1;
            match self.reader.next() {
                Ok((len, block)) => {
                    let frame = take_block(&mut self.interfaces, number, block);
                    self.reader.consume(len);
                    asked_with = None;
                    match frame {
                        Ok(None) => {}
                        Ok(Some(frame)) => {
                            self.number = number;
                            return Ok(Some(frame));
                        }
                        Err(what) => return Err(self.damaged(what)),
                    }
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => {
                    let have = self.reader.data().len();
                    if asked_with == Some(have) {
                        return Err(CaptureError::CutShort { path: self.path.clone(), frame: number });
                    }
                    asked_with = Some(have);
                    let refilled = self.reader.refill().map_err(|error| error.to_string());
                    refilled.map_err(|what| self.damaged(what))?;
                }
                Err(PcapError::UnexpectedEof) => {
                    return Err(CaptureError::CutShort { path: self.path.clone(), frame: number });
                }
                Err(PcapError::NomError(_, kind)) => {
                    let what = format!("{kind:?}");
                    return Err(self.damaged(what));
                }
                Err(error) => {
                    let what = error.to_string();
                    return Err(self.damaged(what));
                }
            }
        }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The frame in a block, if it has one. Errors: what is wrong with the block.
fn take_block(
    interfaces: &mut Vec<Interface>,
    number: u64,
    block: PcapBlockOwned<'_>,
) -> Result<Option<Frame>, &'static str> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            let units_per_second = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            interfaces.push(Interface { link: header.network.into(), units_per_second, offset_s: 0 });
            Ok(None)
        }
        PcapBlockOwned::Legacy(packet) => {
            let interface = interfaces.first().ok_or("a frame before the head of the file")?;
            let nanos_per_unit = 1_000_000_000 / interface.units_per_second;
            let nanos = u64::from(packet.ts_usec) * nanos_per_unit;
            let time = Duration::from_secs(packet.ts_sec.into()) + Duration::from_nanos(nanos);
            let cut = packet.origlen.saturating_sub(packet.caplen) as usize;
            Ok(Some(Frame { number, time, link: interface.link, bytes: packet.data.to_vec(), cut }))
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            interfaces.clear();
            Ok(None)
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
            let units_per_second = description.ts_resolution().ok_or("an impossible resolution of time")?;
            let offset_s = description.ts_offset();
            interfaces.push(Interface { link: description.linktype.into(), units_per_second, offset_s });
            Ok(None)
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let interface = interfaces.get(packet.if_id as usize).ok_or("a frame of an unknown interface")?;
            let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            let per_second = interface.units_per_second;
            let nanos = u128::from(units % per_second) * 1_000_000_000 / u128::from(per_second);
            let seconds = (units / per_second).saturating_add_signed(interface.offset_s);
            let time = Duration::new(seconds, nanos as u32);
            let bytes = packet.packet_data().to_vec();
            let cut = (packet.orig_len() as usize).saturating_sub(bytes.len());
            Ok(Some(Frame { number, time, link: interface.link, bytes, cut }))
        }
        // Simple packet blocks have no time; everything else has no frame.
        PcapBlockOwned::NG(_) => Ok(None),
    }
}
