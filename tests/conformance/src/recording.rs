//! A recording: what its nodes sent to each other, in order, and what was done on them.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::path::Path;

use zea_capture::{Event, Place};
use zea_sim::pool::Tag;
use zea_wire::features::Negotiated;
use zea_wire::header::Header;
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::{Packet, Scope, Stream};

use crate::commands::{self, Command, Done, Io, Nanos};
use crate::contents::{Contents, tag_of};
use crate::res::Configuration;

const DAY: Nanos = 86_400 * 1_000_000_000;

/// A packet of a recording.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The frame that completed it, counted from 1.
    pub frame: u64,
    /// When that was.
    pub time: Nanos,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The pair of streams that it was sent on, an index of [`Recording::links`].
    pub link: usize,
    /// Which of the two.
    pub stream: Stream,
    /// What was agreed.
    pub neg: Negotiated,
    /// The volume that it is about.
    pub volume: Option<VolumeNr>,
    /// Header and fixed part.
    pub packet: Packet,
    /// The payload, a tag for each sector.
    pub tags: Option<Vec<Tag>>,
}

/// A pair of streams between two nodes.
#[derive(Debug, Clone)]
pub struct Link {
    /// Who opened the control stream, and who accepted it.
    pub opener: NodeId,
    /// See `opener`.
    pub accepter: NodeId,
    /// When the first packet behind the initial ones was sent.
    pub up: Nanos,
    /// Who closed first, and when.
    pub closed: Option<(NodeId, Nanos)>,
}

/// A recording.
#[derive(Debug)]
pub struct Recording {
    /// The name of its folder.
    pub name: String,
    /// Configurations by tag; the one that was loaded first has the name of a node, or none.
    pub configurations: BTreeMap<String, Configuration>,
    /// The nodes, by name.
    pub nodes: BTreeMap<String, NodeId>,
    /// What was done, in order of time.
    pub commands: Vec<Command>,
    /// Pairs of streams in the order in which they were made.
    pub links: Vec<Link>,
    /// Packets behind the initial ones, in the order of the frames.
    pub sent: Vec<Sent>,
    /// The bytes of all sectors that were written, on either way.
    pub contents: Contents,
}

impl Recording {
    /// Reads a folder.
    ///
    /// # Errors
    /// Something in it cannot be read.
    pub fn read(folder: &Path) -> Result<Recording, String> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let configurations = configurations(folder)?;
        let first = configurations.values().next().ok_or("no configuration")?;
        let nodes: BTreeMap<String, NodeId> = first.nodes.iter().map(|n| (n.name.clone(), n.id)).collect();
        let mut reader =
            Reader { nodes: first.nodes.iter().map(|n| (n.ip.into(), n.id)).collect(), ..Reader::default() };
        let mut begin = None;
        let (_, result) = zea_capture::read(&folder.join("capture.pcap.gz"), |place, event| {
            begin.get_or_insert(nanos(&place));
            reader.take(place, event);
        });
        result.map_err(|e| e.to_string())?;
        let day = begin.ok_or("an empty recording")? / DAY * DAY;
        let text = std::fs::read_to_string(folder.join("commands.txt")).map_err(|e| format!("commands.txt: {e}"))?;
        let commands = commands::parse(&text, day)?;
        let Reader { links, sent, mut contents, .. } = reader;
        for command in &commands {
            if let Done::Io(Io::Write { offset, len, tag, .. }) | Done::Disk(Io::Write { offset, len, tag, .. }) =
                &command.done
            {
                (offset / 512..(offset + len) / 512).for_each(|nr| _ = contents.learn(&written_sector(nr, tag)));
            }
        }
        Ok(Recording { name, configurations, nodes, commands, links, sent, contents })
    }

    /// The configuration of a node when the recording began.
    ///
    /// # Panics
    /// There is none, which [`Recording::read`] excludes.
    pub fn configuration(&self, node: &str) -> &Configuration {
        let own = self.configurations.get(node).or_else(|| self.configurations.get(""));
        own.unwrap_or_else(|| self.configurations.values().next().expect("a recording has a configuration"))
    }

    /// The newest version that a node offers; `None` if it never does.
    pub fn protocol_max(&self, node: NodeId) -> Option<u32> {
        self.sent.iter().filter(|s| s.from == node).find_map(|s| match &s.packet {
            Packet::ConnectionFeatures(features) => Some(features.protocol_max),
            _ => None,
        })
    }
}

/// `r0.res`, `r0.TAG.res`.
fn configurations(folder: &Path) -> Result<BTreeMap<String, Configuration>, String> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(tag) = file.strip_prefix("r0").and_then(|rest| rest.strip_suffix(".res")) else { continue };
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{file}: {e}"))?;
        let read = Configuration::parse(&text).map_err(|e| format!("{file}: {e}"))?;
        all.insert(tag.trim_start_matches('.').to_owned(), read);
    }
    Ok(all)
}

fn nanos(place: &Place) -> Nanos {
    Nanos::try_from(place.time.as_nanos()).expect("a time of this century")
}

/// A TCP connection.
#[derive(Debug)]
struct Connection {
    opener: IpAddr,
    accepter: IpAddr,
    stream: Option<Stream>,
    link: Option<usize>,
}

#[derive(Debug, Default)]
struct Reader {
    nodes: BTreeMap<IpAddr, NodeId>,
    connections: BTreeMap<usize, Connection>,
    links: Vec<Link>,
    sent: Vec<Sent>,
    contents: Contents,
}

impl Reader {
    fn take(&mut self, place: Place, event: Event<'_>) {
        match event {
            Event::Opened => {
                let (opener, accepter) = (place.from.ip(), place.to.ip());
                let connection = Connection { opener, accepter, stream: None, link: None };
                self.connections.insert(place.connection, connection);
            }
            Event::Packet(recorded) => self.packet(&place, recorded),
            Event::Closed(_) => {
                let link = self.connections.get(&place.connection).and_then(|c| c.link);
                if let (Some(link), Some(node)) = (link, self.nodes.get(&place.from.ip())) {
                    self.links[link].closed.get_or_insert((*node, nanos(&place)));
                }
            }
            Event::Undecodable(_) => {}
        }
    }

    fn packet(&mut self, place: &Place, recorded: zea_capture::Recorded<'_>) {
        let (Some(&from), Some(&to)) = (self.nodes.get(&place.from.ip()), self.nodes.get(&place.to.ip())) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&place.connection) else { return };
        let packet = recorded.packet;
        connection.stream = Some(match packet {
            Packet::InitialMeta => Stream::Control,
            _ => recorded.stream,
        });
        if matches!(packet, Packet::InitialData | Packet::InitialMeta) {
            return;
        }
        if connection.link.is_none() && matches!(packet, Packet::ConnectionFeatures(_)) {
            self.link(place);
        }
        // A payload that the end of the connection cut off is not delivered either.
        if recorded.payload.len() < recorded.payload_len {
            return;
        }
        let Some(link) = self.connections[&place.connection].link else { return };
        self.sent.push(Sent {
            frame: place.frame,
            time: nanos(place),
            from,
            to,
            link,
            stream: recorded.stream,
            neg: recorded.neg,
            volume: volume(&recorded.header, packet),
            packet: packet.clone(),
            tags: packet
                .has_payload()
                .then(|| recorded.payload.chunks(512).map(|sector| self.contents.learn(sector)).collect()),
        });
    }

    /// A data stream and the newest control stream between the same nodes are a link.
    fn link(&mut self, place: &Place) {
        let (from, to) = (place.from.ip(), place.to.ip());
        let control = self.connections.iter_mut().rev().find(|(_, c)| {
            let here = [(from, to), (to, from)].contains(&(c.opener, c.accepter));
            c.stream == Some(Stream::Control) && c.link.is_none() && here
        });
        let Some((_, control)) = control else { return };
        let link = self.links.len();
        control.link = Some(link);
        let (opener, accepter) = (control.opener, control.accepter);
        if let Some(data) = self.connections.get_mut(&place.connection) {
            data.link = Some(link);
        }
        let (opener, accepter) = (self.nodes[&opener], self.nodes[&accepter]);
        self.links.push(Link { opener, accepter, up: nanos(place), closed: None });
    }
}

fn volume(header: &Header, packet: &Packet) -> Option<VolumeNr> {
    match packet.scope() {
        Scope::Connection => None,
        Scope::Volume => header.device_volume(),
        Scope::Either => header.volume(),
    }
}

/// What `iot` writes: `sector N tag TAG`, a zero byte, and the first letter of the tag up to the end of the sector.
fn written_sector(nr: u64, what: &str) -> [u8; 512] {
    let mut bytes = [what.bytes().next().unwrap_or(0); 512];
    let text = format!("sector {nr} tag {what}\0");
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// The tags of what `iot` writes.
pub fn written_tags(first_sector: u64, sectors: u64, what: &str) -> Vec<Tag> {
    (first_sector..first_sector + sectors).map(|nr| tag_of(&written_sector(nr, what))).collect()
}

/// Puts frames in order that the bridge saw in the wrong one: an answer never comes before what it answers.
pub fn in_causal_order(sent: &[&Sent]) -> Vec<usize> {
    /// An answer is looked for this many packets ahead.
    const NEAR: usize = 12;
    let mut order: Vec<usize> = Vec::with_capacity(sent.len());
    let mut open: BTreeMap<(usize, NodeId, Question), usize> = BTreeMap::new();
    let mut waiting: VecDeque<usize> = VecDeque::new();
    for (i, packet) in sent.iter().enumerate() {
        if let Some(question) = Question::answered_by(&packet.packet) {
            let key = (packet.link, packet.to, question);
            let ahead = |s: &&&Sent| {
                s.link == packet.link && s.from == packet.to && Question::asked_by(&s.packet) == Some(question)
            };
            match open.get_mut(&key).filter(|n| **n > 0) {
                Some(n) => *n -= 1,
                None if sent[i + 1..].iter().take(NEAR).any(|s| ahead(&s)) => {
                    waiting.push_back(i);
                    continue;
                }
                None => {}
            }
        }
        order.push(i);
        if let Some(question) = Question::asked_by(&packet.packet) {
            let early = waiting.iter().position(|&w| {
                sent[w].link == packet.link
                    && sent[w].to == packet.from
                    && Question::answered_by(&sent[w].packet) == Some(question)
            });
            match early {
                Some(at) => order.extend(waiting.remove(at)),
                None => *open.entry((packet.link, packet.from, question)).or_default() += 1,
            }
        }
    }
    order.extend(waiting);
    order
}

/// What a packet asks for, so that its answer is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// To write, by block id and sector.
    Write(u64, u64),
    /// To read or to compare.
    Read(u64, u64),
    /// To write resync data.
    Resync(u64, u64),
    /// For a digest of a block that is compared, by sector.
    Compare(u64),
    /// Whether it is the same as here.
    Verdict(u64),
    /// To close an epoch.
    Epoch(u32),
    /// To prepare a transaction.
    Prepare(u32),
}

impl Question {
    /// The answer says which block it is about, by the name that the question gave it.
    pub fn names_a_block(&self) -> bool {
        matches!(self, Question::Write(..) | Question::Read(..) | Question::Compare(_) | Question::Verdict(_))
    }

    /// What this packet asks for.
    pub fn asked_by(packet: &Packet) -> Option<Question> {
        Some(match packet {
            Packet::Data(d) => Question::Write(d.block_id.0, d.sector),
            Packet::Trim(t) | Packet::Zeroes(t) => Question::Write(t.block_id.0, t.sector),
            Packet::DataRequest(r) | Packet::RsDataRequest(r) | Packet::RsThinReq(r) => {
                Question::Read(r.block_id.0, r.sector)
            }
            Packet::CsumRsRequest(r) => Question::Read(r.req.block_id.0, r.req.sector),
            Packet::RsDagtagReq(r) | Packet::RsThinDagtagReq(r) => Question::Read(r.block_id.0, r.sector),
            Packet::RsCsumDagtagReq(r) => Question::Read(r.req.block_id.0, r.req.sector),
            Packet::OvRequest(r) => Question::Compare(r.sector),
            Packet::OvDagtagReq(r) => Question::Compare(r.sector),
            Packet::OvReply(r) => Question::Verdict(r.req.sector),
            Packet::OvDagtagReply(r) => Question::Verdict(r.req.sector),
            Packet::RsDataReply(d) => Question::Resync(d.block_id.0, d.sector),
            Packet::RsDeallocatedId(a) => Question::Resync(a.block_id.0, a.sector),
            Packet::Barrier(b) => Question::Epoch(b.barrier),
            Packet::TwopcPrepare(r) | Packet::TwopcPrepRsz(r) => Question::Prepare(r.tid),
            _ => return None,
        })
    }

    /// What this packet answers.
    pub fn answered_by(packet: &Packet) -> Option<Question> {
        Some(match packet {
            Packet::WriteAck(a) | Packet::RecvAck(a) | Packet::NegAck(a) | Packet::WriteAckInSync(a) => {
                Question::Write(a.block_id.0, a.sector)
            }
            Packet::Superseded(a) | Packet::RetryWrite(a) => Question::Write(a.block_id.0, a.sector),
            Packet::DataReply(d) | Packet::RsDataReply(d) => Question::Read(d.block_id.0, d.sector),
            Packet::NegDreply(a)
            | Packet::NegRsDreply(a)
            | Packet::RsCancel(a)
            | Packet::RsCancelAhead(a)
            | Packet::RsIsInSync(a)
            | Packet::RsDeallocatedId(a) => Question::Read(a.block_id.0, a.sector),
            Packet::OvReply(r) => Question::Compare(r.req.sector),
            Packet::OvDagtagReply(r) => Question::Compare(r.req.sector),
            Packet::OvResult(a) => Question::Verdict(a.sector),
            Packet::OvResultId(r) => Question::Verdict(r.sector),
            Packet::RsWriteAck(a) | Packet::RsNegAck(a) => Question::Resync(a.block_id.0, a.sector),
            Packet::BarrierAck(b) => Question::Epoch(b.barrier),
            Packet::TwopcYes(r) | Packet::TwopcNo(r) | Packet::TwopcRetry(r) => Question::Prepare(r.tid),
            _ => return None,
        })
    }
}
