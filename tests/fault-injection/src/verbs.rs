//! The verbs that explicit scenarios are written in.

use zea_core::config::NetOptions;
use zea_core::io::{AdminError, Command, Input, IoError, Op, Payload, ReqId, Request};
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, Role};

use crate::checks::Check;
use crate::disk::DiskFaults;
use crate::net::NodeIx;
use crate::node::{Pending, Purpose};
use crate::pool::POISON;
use crate::scenario::{BUDGET_MS, V0};
use crate::workload::{Mix, Workload};
use crate::world::{Outcome, World, node_id};

/// A cluster that has converged stays so for this long before it counts as at rest: peers that were resynced compare once more.
const CALM_MS: u64 = 5_000;
/// Blocks that a load writes most.
const HOT_BLOCKS: u64 = 12;

impl World {
    /// Runs until `done`, at most `budget_ms` of virtual time. Whether it came to that.
    pub fn run_until(&mut self, done: impl Fn(&World) -> bool, budget_ms: u64) -> bool {
        let limit = self.now + budget_ms * 1_000_000;
        while !done(self) {
            if !self.step(limit) {
                return done(self);
            }
        }
        true
    }

    /// Lets virtual time pass.
    pub fn run_ms(&mut self, ms: u64) {
        let limit = self.now + ms * 1_000_000;
        while self.step(limit) {}
    }

    /// Runs until `done` and fails if it does not come to that.
    pub fn expect(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        if !self.run_until(done, BUDGET_MS) {
            let text = self.summary();
            self.fail(Check::Stuck, &format!("{what} does not happen:\n{text}"));
        }
    }

    /// Gives an admin command and waits for the answer.
    ///
    /// # Errors
    /// What the node answered.
    pub fn command(&mut self, ix: NodeIx, command: Command) -> Result<(), AdminError> {
        let text = format!("the answer of node {ix} to {command:?}");
        let tag = self.admin(ix, command);
        self.expect(&text, |w| w.replies.contains_key(&tag) || !w.nodes[ix].is_up());
        self.replies.remove(&tag).expect("the node did not die")
    }

    /// Gives an admin command that has to succeed.
    pub fn must(&mut self, ix: NodeIx, command: Command) {
        let text = format!("{command:?}");
        if let Err(error) = self.command(ix, command) {
            self.fail(Check::Core, &format!("node {ix} refuses {text}: {} ({})", error.message, error.code));
        }
    }

    /// Submits a request to the front end of a node.
    pub fn submit(&mut self, ix: NodeIx, volume: VolumeNr, op: Op, sector: u64, sectors: u64, fua: bool) -> ReqId {
        let id = ReqId(self.fresh_id());
        let key = (volume.0, sector);
        let replicas = self.good_replicas(ix, volume);
        let (purpose, tags) = match op {
            Op::Read => (
                Purpose::Read(self.model.read_begins(ix, &self.servers(ix, volume), key, sectors)),
                Some(vec![POISON; sectors as usize]),
            ),
            Op::Write => {
                let (write, tags) = self.model.write_begins(ix, &replicas, key, sectors, false);
                (Purpose::Write(write), Some(tags))
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                (Purpose::Write(self.model.write_begins(ix, &replicas, key, sectors, true).0), None)
            }
            Op::Flush => (Purpose::Flush(self.model.flush_begins()), None),
        };
        let len = (sectors * 512) as u32;
        let since = self.now;
        let node = &mut self.nodes[ix];
        let buf = tags.map(|tags| node.pool.give_to_request(tags, id));
        let payload = buf.map(|buf| Payload { buf, offset: 0, len });
        let request = Request { id, volume, op, sector, len, payload, fua };
        node.requests.insert(id, Pending { request, purpose, buf, since });
        self.feed(ix, Input::Request(request));
        id
    }

    /// Submits a write to volume 0.
    pub fn write(&mut self, ix: NodeIx, sector: u64, sectors: u64) -> ReqId {
        self.submit(ix, V0, Op::Write, sector, sectors, false)
    }

    /// Submits a read of volume 0.
    pub fn read(&mut self, ix: NodeIx, sector: u64, sectors: u64) -> ReqId {
        self.submit(ix, V0, Op::Read, sector, sectors, false)
    }

    /// Submits a flush of volume 0.
    pub fn flush(&mut self, ix: NodeIx) -> ReqId {
        self.submit(ix, V0, Op::Flush, 0, 0, false)
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// What the front end got.
    pub fn wait(&mut self, req: ReqId) -> Result<(), IoError> {
        self.expect(&format!("the end of request {}", req.0), |w| w.outcomes.contains_key(&req));
        match self.outcomes[&req] {
            Outcome::Done(result) => result,
            Outcome::Lost => panic!("the node died before request {} ended", req.0),
        }
    }

    /// Writes to volume 0 and waits; it has to succeed.
    pub fn write_ok(&mut self, ix: NodeIx, sector: u64, sectors: u64) {
        let req = self.write(ix, sector, sectors);
        let result = self.wait(req);
        assert_eq!(result, Ok(()), "write of {sectors} sectors at {sector} on node {ix}");
    }

    /// Reads from volume 0 and waits; it has to succeed, the model checks what it returns.
    pub fn read_ok(&mut self, ix: NodeIx, sector: u64, sectors: u64) {
        let req = self.read(ix, sector, sectors);
        let result = self.wait(req);
        assert_eq!(result, Ok(()), "read of {sectors} sectors at {sector} on node {ix}");
    }

    /// Flushes volume 0 and waits; it has to succeed.
    pub fn flush_ok(&mut self, ix: NodeIx) {
        let req = self.flush(ix);
        assert_eq!(self.wait(req), Ok(()), "flush on node {ix}");
    }

    /// Whether every pair of nodes is connected.
    pub fn all_connected(&self) -> bool {
        let count = self.nodes.len();
        (0..count).all(|a| (0..count).all(|b| a == b || self.is_connected(a, b)))
    }

    /// Whether both nodes see each other as connected.
    pub fn is_connected(&self, a: NodeIx, b: NodeIx) -> bool {
        self.nodes[a].conn_state(b) == ConnState::Connected && self.nodes[b].conn_state(a) == ConnState::Connected
    }

    /// Connection state as one node sees it.
    pub fn conn(&self, ix: NodeIx, peer: NodeIx) -> ConnState {
        self.nodes[ix].conn_state(peer)
    }

    /// Disk state of volume 0.
    pub fn disk(&self, ix: NodeIx) -> DiskState {
        self.nodes[ix].disk_state(V0)
    }

    /// Role of a node.
    pub fn role(&self, ix: NodeIx) -> Role {
        self.nodes[ix].role()
    }

    /// Sectors of volume 0 that a node marks out of sync towards a peer.
    pub fn out_of_sync(&mut self, ix: NodeIx, peer: NodeIx) -> u64 {
        self.refresh(ix);
        self.nodes[ix].peer_device(peer, V0).map_or(0, |p| p.out_of_sync_sectors)
    }

    /// Everything connects, is UpToDate, comes to rest, and is equal.
    pub fn settle(&mut self) {
        let budget = self.now + BUDGET_MS * 1_000_000;
        loop {
            self.expect("convergence", World::is_converged);
            self.run_ms(CALM_MS);
            if self.is_calm() || self.now > budget {
                break;
            }
        }
        self.check_at_rest();
    }

    /// Data on the disk of one node before the world begins.
    pub fn preset(&mut self, ix: NodeIx, volume: VolumeNr, sector: u64, sectors: u64) {
        let tags = self.model.preset(ix, (volume.0, sector), sectors);
        self.nodes[ix].disks.get_mut(&volume).expect("a volume of this node").preset(sector, &tags);
    }

    /// Changes the saved configuration of a node and tells its core.
    pub fn set_net_options(&mut self, ix: NodeIx, peer: NodeIx, net: NetOptions) {
        for saved in self.nodes[ix].saved.peers.iter_mut().filter(|p| p.node_id.index() == peer) {
            saved.net = net.clone();
        }
        if self.nodes[ix].is_up() {
            self.must(ix, Command::SetNetOptions { peer: node_id(peer), net });
        }
    }

    // ---- more than one step ----------------------------------------------------------------------------------------

    /// The other nodes.
    pub fn others(&self, ix: NodeIx) -> impl Iterator<Item = NodeIx> + use<> {
        (0..self.nodes.len()).filter(move |other| *other != ix)
    }

    /// Cuts the way between two nodes, and waits until both have noticed.
    pub fn part(&mut self, a: NodeIx, b: NodeIx) {
        self.cut(a, b);
        self.expect("the loss is noticed", |w| w.is_apart(a, b));
    }

    /// Neither node takes the other for connected.
    pub fn is_apart(&self, a: NodeIx, b: NodeIx) -> bool {
        self.conn(a, b) != ConnState::Connected && self.conn(b, a) != ConnState::Connected
    }

    /// Cuts a node off from all others, and waits until everybody has noticed.
    pub fn isolate(&mut self, ix: NodeIx) {
        self.others(ix).for_each(|other| self.cut(ix, other));
        self.expect("the loss is noticed", |w| w.others(ix).all(|other| w.is_apart(ix, other)));
    }

    /// Ends what [`World::isolate`] began.
    pub fn rejoin(&mut self, ix: NodeIx) {
        self.others(ix).for_each(|other| self.heal(ix, other));
    }

    /// Takes the disk of volume 0 away and waits until it is closed.
    pub fn detach(&mut self, ix: NodeIx) {
        self.must(ix, Command::Detach { volume: V0, force: false });
        self.expect("the disk is closed", |w| w.nodes[ix].attached.is_empty());
    }

    /// Attaches the disk of volume 0, sound again, when it is closed.
    pub fn attach(&mut self, ix: NodeIx) {
        self.set_disk_faults(ix, V0, DiskFaults::default());
        self.expect("the disk is closed", |w| w.nodes[ix].attached.is_empty());
        let backing = self.nodes[ix].disks[&V0].backing();
        self.must(ix, Command::Attach { volume: V0, backing });
    }

    /// Lets a load work on every Primary for a while.
    pub fn under_load(&mut self, ms: u64, mix: Mix) {
        let end = self.now + ms * 1_000_000;
        self.under_load_until(mix, |w| w.now >= end);
    }

    /// Lets a load work on every Primary until something is so; it must come to that.
    pub fn under_load_until(&mut self, mix: Mix, done: impl Fn(&World) -> bool) {
        let size = self.nodes.iter().filter_map(|n| n.device(V0)).map(|d| d.size_sectors).max().unwrap_or(0);
        let mut load = Workload::new(self.seed ^ self.now, mix, HOT_BLOCKS, size);
        let limit = self.now + BUDGET_MS * 1_000_000;
        load.step(self, &Default::default());
        while !done(self) {
            assert!(self.now < limit, "it does not come to what the load waits for:\n{}", self.summary());
            self.step(self.now + 1_000_000);
            load.step(self, &Default::default());
        }
    }

    /// Sectors of volume 0 that a node received from a peer since they connected.
    pub fn received(&mut self, ix: NodeIx, peer: NodeIx) -> u64 {
        self.refresh(ix);
        self.nodes[ix].peer_device(peer, V0).map_or(0, |p| p.received_sectors)
    }

    /// The generation of volume 0, without the bit that says whether its writer is Primary.
    pub fn generation(&mut self, ix: NodeIx) -> u64 {
        self.refresh(ix);
        self.nodes[ix].device(V0).map_or(0, |d| d.current_uuid) & !1
    }
}
