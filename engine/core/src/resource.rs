//! A resource: the state machine's one entry point, its tables, and the tail that runs after every input.

use std::collections::VecDeque;

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::ids::{NodeId, NodeMask, VolumeNr};
use zea_wire::packet::Packet;
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::config::ResourceConfig;
use crate::connection::Connection;
use crate::event::{Event, Severity};
use crate::io::{
    Action, AdminError, AdminTag, BufId, DiskCmd, DiskError, DiskTag, Input, IoError, LinkId, MetaBlock, Outbox,
    Payload, ReqId, Rng, Time,
};
use crate::meta_queue::MetaJob;
use crate::peer_request::PeerReq;
use crate::quorum::QuorumState;
use crate::request::{FlushReq, ReadReq, WriteReq};
use crate::table::Table;
use crate::twopc::TwoPc;
use crate::volume::Volume;

/// What every handler gets: time, randomness, and where its actions go.
pub(crate) struct Ctx<'a> {
    pub(crate) now: Time,
    pub(crate) rng: &'a mut dyn Rng,
    pub(crate) out: &'a mut Outbox,
}

impl Ctx<'_> {
    /// A new UUID: 63 random bits, bit 0 clear, never one of the special values.
    pub(crate) fn uuid(&mut self) -> u64 {
        loop {
            let u = self.rng.next_u64() & !1;
            #[cfg(feature = "mutations")]
            let u = if broken!(OwnRandomness) { u ^ crate::mutation::noise() } else { u };
            if u > 4 && u < u64::MAX - 1 {
                return u;
            }
        }
    }

    pub(crate) fn notice(&mut self, severity: Severity, text: impl Into<String>) {
        self.out.push(Action::Event(Event::Notice { severity, text: text.into() }));
    }

    pub(crate) fn reply(&mut self, tag: AdminTag, result: Result<(), AdminError>) {
        self.out.push(Action::Reply { tag, result });
    }

    pub(crate) fn complete(&mut self, req: ReqId, result: Result<(), IoError>) {
        self.out.push(Action::Complete { req, result });
        if broken!(CompleteTwice) {
            self.out.push(Action::Complete { req, result });
        }
    }

    pub(crate) fn free(&mut self, buf: BufId) {
        self.out.push(Action::FreeBuf(buf));
    }
}

/// What a disk command was for.
#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
pub(crate) enum DiskJob {
    /// The local part of a front-end write, by index.
    Write(usize),
    /// A front-end read, by index.
    Read(usize),
    /// The local part of a front-end flush, by index.
    Flush(usize),
    /// A peer request, by index.
    Peer(usize),
    /// The flush at the end of a peer's epoch.
    EpochFlush(NodeId, LinkId),
    /// The flush that makes resync data stable.
    ResyncFlush,
    /// The meta-data queue.
    Meta(MetaJob),
    /// Attach reads.
    Attach,
}

impl DiskJob {
    fn is_flush(self) -> bool {
        let meta = |job| matches!(job, MetaJob::BitmapFlush | MetaJob::DataFlush);
        matches!(self, DiskJob::Flush(_) | DiskJob::EpochFlush(..) | DiskJob::ResyncFlush)
            || matches!(self, DiskJob::Meta(job) if meta(job))
    }
}

/// The state machine of one resource. See the crate documentation.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub struct Resource {
    pub(crate) config: ResourceConfig,
    pub(crate) role: Role,
    /// Ascending by number.
    pub(crate) volumes: Vec<Volume>,
    /// Ascending by node id.
    pub(crate) conns: Vec<Connection>,
    /// With the volume, and its writes that had ended before.
    pub(crate) jobs: Table<(usize, DiskJob, u64)>,
    pub(crate) writes: Table<WriteReq>,
    /// The transfer log: indices of `writes` in dagtag order.
    pub(crate) transfer_log: VecDeque<usize>,
    pub(crate) reads: Table<ReadReq>,
    pub(crate) flushes: Table<FlushReq>,
    pub(crate) peer_reqs: Table<PeerReq>,
    /// Number of the epoch that new writes join, the writes in it, and when the first one joined.
    pub(crate) epoch: u32,
    pub(crate) epoch_writes: u32,
    pub(crate) epoch_since: Time,
    /// Written sectors of this node as Primary.
    pub(crate) dagtag: u64,
    /// The peer ack that is being collected.
    pub(crate) peer_ack: Option<PendingPeerAck>,
    pub(crate) twopc: TwoPc,
    pub(crate) quorum: QuorumState,
    /// A Primary whose connection is gone; its last writes have not been compared with the other survivors.
    pub(crate) lost_primary: Option<NodeId>,
    pub(crate) next_block_id: u64,
    /// A write may be waiting for space on a full device.
    pub(crate) no_space: bool,
    /// When to look for bits that a resync left over.
    pub(crate) recheck_at: Option<Time>,
    /// A Primary that said it would connect again is waited for until then.
    pub(crate) primary_back_by: Option<Time>,
    /// `Command::Down` is going on.
    pub(crate) down: Option<AdminTag>,
    pub(crate) announced: Vec<Event>,
    pub(crate) state_changed: bool,
    /// The tail has to run once more.
    pub(crate) again: bool,
    /// The time of the last input.
    pub(crate) now: Time,
}

/// Requests that are done and not yet peer-acked.
#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
pub(crate) struct PendingPeerAck {
    pub(crate) mask: NodeMask,
    pub(crate) sent: NodeMask,
    pub(crate) first_dagtag: u64,
    pub(crate) last_dagtag: u64,
    pub(crate) since: Time,
}

impl Resource {
    /// A resource without volumes and peers; [`crate::io::Command`]s add them.
    pub fn new(config: ResourceConfig) -> Self {
        Resource {
            config,
            role: Role::Secondary,
            volumes: Vec::new(),
            conns: Vec::new(),
            jobs: Table::new(),
            writes: Table::new(),
            transfer_log: VecDeque::new(),
            reads: Table::new(),
            flushes: Table::new(),
            peer_reqs: Table::new(),
            epoch: 0,
            epoch_writes: 0,
            epoch_since: Time(0),
            dagtag: 0,
            peer_ack: None,
            twopc: TwoPc::default(),
            quorum: QuorumState::default(),
            lost_primary: None,
            next_block_id: 1,
            no_space: false,
            recheck_at: None,
            primary_back_by: None,
            down: None,
            announced: Vec::new(),
            state_changed: true,
            again: false,
            now: Time(0),
        }
    }

    /// One event in, a bounded list of actions out (appended to `out`).
    pub fn handle(&mut self, now: Time, rng: &mut dyn Rng, input: Input<'_>, out: &mut Outbox) {
        self.now = now;
        let mut cx = Ctx { now, rng, out };
        let cx = &mut cx;
        match input {
            Input::Request(request) => self.front_end_request(cx, request),
            Input::DiskDone { tag, result, buf, meta, block } => self.disk_done(cx, tag, result, buf, meta, block),
            Input::DigestDone { tag, digest } => self.digest_done(cx, tag, digest),
            Input::LinkUp { peer, link, resolve_conflicts } => self.link_up(cx, peer, link, resolve_conflicts),
            Input::LinkDown { peer, link, lost } => self.link_down(cx, peer, link, lost),
            Input::Packet { peer, link, volume, packet, payload } => {
                self.packet(cx, peer, link, volume, packet, payload)
            }
            Input::Admin { tag, command } => self.admin(cx, tag, command),
            Input::Timer => {}
        }
        self.tail(cx);
    }

    /// The short tail after every input: queues, resync steps, epochs, peer acks, timers, events.
    fn tail(&mut self, cx: &mut Ctx<'_>) {
        self.timers(cx);
        self.recheck(cx);
        self.primary_stays_away(cx);
        loop {
            self.again = false;
            self.compare_step(cx);
            self.tell_by_bitmaps(cx);
            self.twopc_step(cx);
            self.down_step(cx);
            self.quorum_step(cx);
            for vidx in 0..self.volumes.len() {
                self.retry_waiters(cx, vidx);
                self.meta_pump(cx, vidx);
                self.retry_waiters(cx, vidx);
                self.try_close_disk(cx, vidx);
                self.tell_disk_state(cx, vidx);
            }
            self.serve_steps(cx);
            self.resync_after_step(cx);
            self.resync_steps(cx);
            self.verify_steps(cx);
            self.epochs_step(cx);
            if !self.again && !self.volumes.iter().any(|v| v.meta.can_begin()) {
                break;
            }
        }
        if self.state_changed {
            self.state_changed = false;
            self.announce(cx);
        }
    }

    fn disk_done(
        &mut self,
        cx: &mut Ctx<'_>,
        tag: DiskTag,
        result: Result<(), DiskError>,
        buf: Option<BufId>,
        meta: &[u8],
        block: Option<MetaBlock>,
    ) {
        let index = usize::try_from(tag.0).expect("disk tags are slab indices");
        let (vidx, job, written) = self.jobs.remove(index);
        self.volumes[vidx].disk_jobs -= 1;
        self.volumes[vidx].written += u64::from(matches!(job, DiskJob::Write(_) | DiskJob::Peer(_)));
        if job.is_flush() {
            self.flush_ended(cx, vidx, written, job, result.is_ok());
        }
        match job {
            DiskJob::Write(i) => self.local_write_done(cx, i, result),
            DiskJob::Read(i) => self.local_read_done(cx, i, result),
            DiskJob::Flush(i) => self.local_flush_done(cx, vidx, i, result),
            DiskJob::Peer(i) => self.peer_disk_done(cx, i, result, buf),
            DiskJob::EpochFlush(node, link) => self.epoch_flush_done(cx, vidx, node, link, result),
            DiskJob::ResyncFlush => self.resync_flush_done(cx, vidx, result),
            DiskJob::Meta(job) => self.meta_done(cx, vidx, job, result, block),
            DiskJob::Attach => self.attach_read(cx, vidx, result, meta),
        }
    }

    /// Give a command to the disk of a volume.
    pub(crate) fn disk(&mut self, cx: &mut Ctx<'_>, vidx: usize, job: DiskJob, cmd: DiskCmd) {
        let v = &mut self.volumes[vidx];
        v.disk_jobs += 1;
        let index = self.jobs.insert((vidx, job, v.written));
        cx.out.push(Action::Disk { tag: DiskTag(index as u64), volume: v.nr, cmd });
    }

    /// Queue a packet for a peer; nothing happens if the link is gone.
    pub(crate) fn send(&mut self, cx: &mut Ctx<'_>, cidx: usize, volume: Option<VolumeNr>, packet: Packet) {
        self.send_payload(cx, cidx, volume, packet, None);
    }

    /// As [`Resource::send`], with bulk payload.
    pub(crate) fn send_payload(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        volume: Option<VolumeNr>,
        packet: Packet,
        payload: Option<Payload>,
    ) {
        let c = &self.conns[cidx];
        if let Some(link) = &c.link {
            cx.out.push(Action::Send { peer: c.node(), link: link.id, volume, packet, payload });
        }
    }

    /// Queue a packet about one volume.
    pub(crate) fn send_volume(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, packet: Packet) {
        self.send(cx, cidx, Some(self.volumes[vidx].nr), packet);
    }

    pub(crate) fn vidx(&self, nr: VolumeNr) -> Option<usize> {
        self.volumes.binary_search_by_key(&nr, |v| v.nr).ok()
    }

    pub(crate) fn cidx(&self, node: NodeId) -> Option<usize> {
        self.conns.binary_search_by_key(&node, Connection::node).ok()
    }

    /// Connections that are up, by index.
    pub(crate) fn up_conns(&self) -> impl Iterator<Item = usize> + use<> {
        let up: Vec<usize> = (0..self.conns.len()).filter(|&c| self.conns[c].is_up()).collect();
        up.into_iter()
    }

    /// Directly connected nodes, this one included.
    pub(crate) fn reachable(&self) -> NodeMask {
        let mut mask = self.config.node_id.mask();
        for c in self.conns.iter().filter(|c| c.is_up()) {
            mask.insert(c.node());
        }
        mask
    }

    /// A peer that is connected and has UpToDate data of this volume.
    pub(crate) fn up_to_date_peer(&self, vidx: usize) -> Option<usize> {
        (0..self.conns.len()).find(|&c| {
            let c = &self.conns[c];
            c.is_up() && c.pds[vidx].disk == DiskState::UpToDate && c.pds[vidx].repl >= ReplState::Established
        })
    }

    /// Connected nodes call data of different generations UpToDate: some have not met yet who has the newest. Of peers that are not
    /// Zea the last generation is not always known.
    pub(crate) fn up_to_date_peers_disagree(&self, vidx: usize) -> bool {
        let up_to_date = |c: &&Connection| c.is_up() && c.keeps_bits() && c.pds[vidx].disk == DiskState::UpToDate;
        let told = |c: &Connection| c.pds[vidx].says.uuids.as_ref().map(|u| u.current & !1);
        let mut generations = self.conns.iter().filter(up_to_date).filter_map(told);
        generations.next().is_some_and(|first| generations.any(|other| other != first))
    }

    /// This node is connected and UpToDate.
    pub(crate) fn is_up_to_date(&self, node: NodeId, vidx: usize) -> bool {
        self.cidx(node).is_some_and(|c| self.conns[c].is_up() && self.conns[c].pds[vidx].disk == DiskState::UpToDate)
    }

    /// UpToDate data of this volume can be reached.
    pub(crate) fn has_data(&self, vidx: usize) -> bool {
        self.volumes[vidx].disk == DiskState::UpToDate || self.up_to_date_peer(vidx).is_some()
    }

    /// This node is Primary, and only this peer has UpToDate data of some volume.
    pub(crate) fn needs_data_of(&self, cidx: usize) -> bool {
        let up_to_date = |c: &Connection, v: usize| c.is_up() && c.pds[v].disk == DiskState::UpToDate;
        let others = |v: usize| self.conns.iter().enumerate().any(|(i, c)| i != cidx && up_to_date(c, v));
        self.role == Role::Primary
            && (0..self.volumes.len()).any(|v| {
                let here = self.volumes[v].disk == DiskState::UpToDate;
                !here && up_to_date(&self.conns[cidx], v) && !others(v)
            })
    }

    /// A connected peer is Primary.
    pub(crate) fn primary_peer(&self) -> Option<NodeId> {
        self.conns.iter().find(|c| c.is_up() && c.role == Role::Primary).map(Connection::node)
    }

    /// Drop a connection because of what its peer did or because it does not answer; it is tried again.
    pub(crate) fn drop_link(&mut self, cx: &mut Ctx<'_>, cidx: usize, state: ConnState, why: &str) {
        let c = &self.conns[cidx];
        if c.link.is_none() {
            return;
        }
        cx.out.push(Action::Disconnect { peer: c.node() });
        self.link_lost(cx, cidx, state, why);
    }

    /// Make a connection anew, to compare the data (`docs/adr`: comparing is reconnecting). Another Zea node is told, so that
    /// it does not take it for a loss.
    pub(crate) fn reconnect(&mut self, cx: &mut Ctx<'_>, cidx: usize, why: &str) {
        if self.conns[cidx].is_up() && self.conns[cidx].keeps_bits() && !self.volumes.is_empty() {
            cx.notice(Severity::Info, format!("connecting again to {}: {why}", self.conns[cidx].config.name));
            self.announce_tear_down(cx, cidx);
        }
        self.drop_link(cx, cidx, ConnState::TearDown, why);
    }

    /// The next instant at which [`Input::Timer`] is wanted.
    pub fn deadline(&self) -> Option<Time> {
        self.next_timer(self.now)
    }
}
