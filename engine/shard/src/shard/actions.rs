//! Inputs into a core, and its actions out of it.

use zea_core::event::Event;
use zea_core::io::{Action, AdminTag, BufId, DigestTag, DiskCmd, Input, LinkLost, Payload};
use zea_wire::digest::DigestAlg;
use zea_wire::flags::DpFlags;
use zea_wire::ids::VolumeNr;
use zea_wire::packet::Packet;

use super::Shard;
use crate::AdminResult;
use crate::disk::{DiskDone, Owner};
use crate::events::ResourceEvent;
use crate::frontend::LOCAL_BITS;
use crate::limits::INPUTS_PER_CHECK;
use crate::metrics::Metrics;
use crate::pool::Buf;

/// A digest that a core waits for. The core keeps the buffer until it has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digesting {
    slot: usize,
    tag: DigestTag,
    alg: DigestAlg,
    payload: Payload,
}

impl Shard {
    /// One input, and everything that the core wants done about it. Nothing here feeds a core again: what comes of an
    /// action at once is queued for [`Shard::settle`].
    pub(super) fn feed(&mut self, slot: usize, input: Input<'_>) {
        let mut actions = std::mem::take(&mut self.outbox);
        assert!(actions.is_empty(), "a core is fed while its actions are carried out");
        let resource = &mut self.resources[slot];
        resource.handle(self.now, &mut self.rng, input, &mut actions);
        resource.fed = true;
        resource.unchecked += 1;
        if resource.unchecked >= INPUTS_PER_CHECK {
            resource.unchecked = 0;
            resource.core.check_invariants();
        }
        Metrics::add(&self.metrics.inputs, 1);
        for action in actions.drain(..) {
            self.execute(slot, action);
        }
        self.outbox = actions;
        // Who asked sees everything done that came with the answer, such as a device that was let go.
        for (reply, result) in self.replies.drain(..) {
            // Who asked may have stopped waiting.
            let _ = reply.try_send(result);
        }
    }

    fn execute(&mut self, slot: usize, action: Action) {
        match action {
            Action::Send { peer, link, volume, packet, payload } => {
                let Some(at) = self.link_of(slot, peer, link) else {
                    return;
                };
                Metrics::add(&self.metrics.packets_sent, 1);
                if matches!(&packet, Packet::Data(data) if data.dp_flags.contains(DpFlags::SEND_WRITE_ACK)) {
                    self.legs.leg();
                }
                if let Err(lost) = self.links[at].send(&mut self.pool, volume, &packet, payload) {
                    self.lose(at, lost);
                }
            }
            Action::Disk { tag, volume, cmd } => {
                let disk = self.resources[slot].disks.get_mut(&volume);
                let disk = disk.unwrap_or_else(|| panic!("a disk command for volume {volume}, which has no disk"));
                disk.used = true;
                let owner = Owner { resource: slot as u32, volume, tag };
                Metrics::add(&self.metrics.disk_commands, 1);
                if matches!(cmd, DiskCmd::Write { .. }) {
                    self.legs.leg();
                }
                self.disks.submit(&mut self.ring, &mut self.pool, disk.id, owner, cmd);
            }
            Action::Complete { req, result } => {
                let front = (req.0 >> LOCAL_BITS) as usize;
                let local = req.0 & ((1 << LOCAL_BITS) - 1);
                self.resources[slot].requests -= 1;
                self.legs.answer();
                self.fronts[front].answer(&mut self.pool, local, result);
                self.touched.push(front);
            }
            Action::FreeBuf(buf) => self.pool.release(Buf(buf.0)),
            Action::Copy { from, to } => self.copy(from, to),
            Action::SetNegotiated { peer, link, negotiated } => {
                if let Some(at) = self.link_of(slot, peer, link) {
                    self.links[at].set_negotiated(negotiated);
                }
            }
            Action::Connect { peer } => {
                let resource = &mut self.resources[slot];
                resource.peer(peer).wanted = true;
                self.config.links.connect(resource.id, peer);
            }
            Action::Disconnect { peer } => self.disconnect(slot, peer),
            Action::Digest { tag, alg, payload } => self.digests.push_back(Digesting { slot, tag, alg, payload }),
            Action::CloseDisk { volume } => self.close_disk(slot, volume),
            Action::Event(event) => self.event(slot, event),
            Action::Reply { tag, result } => self.reply(slot, tag, result),
        }
    }

    fn copy(&mut self, from: Payload, to: Payload) {
        assert_eq!(from.len, to.len, "a copy between ranges of different length");
        self.pool.copy(Buf(from.buf.0), from.offset, Buf(to.buf.0), to.offset, from.len);
    }

    fn close_disk(&mut self, slot: usize, volume: VolumeNr) {
        let disk = self.resources[slot].disks.remove(&volume);
        let disk = disk.unwrap_or_else(|| panic!("the core closes the disk of volume {volume}, which has none"));
        self.disks.close(disk.id);
        self.resources[slot].changed = true;
    }

    fn event(&mut self, slot: usize, event: Event) {
        let resource = &mut self.resources[slot];
        resource.changed |= matches!(event, Event::Role { .. } | Event::Device { .. });
        if self.subscribers.is_empty() {
            return;
        }
        let event = ResourceEvent { resource: resource.id, name: resource.name.clone(), event };
        self.subscribers.retain(|subscriber| subscriber.deliver(event.clone()));
    }

    fn reply(&mut self, slot: usize, tag: AdminTag, result: AdminResult) {
        let wait = self.admins.remove(tag.0 as usize);
        let resource = &mut self.resources[slot];
        resource.admins -= 1;
        resource.changed = true;
        if let (Some(volume), Err(_)) = (wait.attach, &result) {
            // One that the core looked at is closed by the core.
            if resource.disks.get(&volume).is_some_and(|disk| !disk.used) {
                self.close_disk(slot, volume);
            }
        }
        self.replies.push((wait.reply, result));
    }

    pub(super) fn disk_done(&mut self, done: DiskDone) {
        let mut meta = std::mem::take(&mut self.meta);
        meta.clear();
        if let Some((buf, len)) = done.meta {
            meta.resize(len as usize, 0);
            self.pool.copy_out(buf, 0, &mut meta);
            self.pool.release(buf);
        }
        let input = Input::DiskDone {
            tag: done.owner.tag,
            result: done.result,
            buf: done.buf.map(|buf| BufId(buf.0)),
            meta: &meta,
            block: done.block,
        };
        self.feed(done.owner.resource as usize, input);
        self.meta = meta;
    }

    /// Computes a digest that a core asked for, and tells it.
    pub(super) fn digest(&mut self, Digesting { slot, tag, alg, payload }: Digesting) {
        let digest = self.pool.digest(alg, Buf(payload.buf.0), payload.offset, payload.len);
        self.feed(slot, Input::DigestDone { tag, digest: digest.as_slice() });
    }

    /// Gives a link up, of which the core is told in [`Shard::settle`].
    pub(super) fn lose(&mut self, at: usize, why: LinkLost) {
        let link = &mut self.links[at];
        if !link.is_up() {
            return;
        }
        link.kill();
        let lost = super::links::Lost { resource: link.resource, peer: link.peer, link: link.id, why };
        tracing::debug!(?lost, "link lost");
        self.lost.push_back(lost);
    }
}
