//! What a verify found, in numbers, events and words.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::packet::OvVerdict;

use super::{Resource, limits};
use crate::event::{Event, Severity, VerifyStatus};
use crate::io::Action;
use crate::meta_queue::Step;
use crate::resource::Ctx;

/// Counts of a verify, in sectors.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) total: u64,
    /// Compared or skipped.
    pub(crate) done: u64,
    pub(crate) different: u64,
    pub(crate) skipped: u64,
    /// Different blocks side by side that were not announced yet: first sector, and the one behind.
    range: Option<(u64, u64)>,
}

impl Tally {
    pub(crate) fn new(total: u64) -> Self {
        Tally { total, ..Tally::default() }
    }

    pub(crate) fn status(&self, complete: bool) -> VerifyStatus {
        VerifyStatus {
            total_sectors: self.total,
            done_sectors: self.done,
            different_sectors: self.different,
            skipped_sectors: self.skipped,
            complete,
        }
    }

    pub(crate) fn skip(&mut self, sectors: u64) {
        self.done += sectors;
        self.skipped += sectors;
    }

    /// Count a block. Gives the different range that ends before it, if one does.
    pub(crate) fn note(&mut self, verdict: OvVerdict, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        if verdict == OvVerdict::Skipped {
            self.skip(sectors);
            return None;
        }
        self.done += sectors;
        if verdict == OvVerdict::InSync {
            let ends = self.range.is_some_and(|(_, end)| end == sector);
            return if ends { self.range.take() } else { None };
        }
        self.different += sectors;
        match self.range.as_mut() {
            Some((_, end)) if *end == sector => {
                *end += sectors;
                None
            }
            _ => self.range.replace((sector, sector + sectors)),
        }
    }
}

impl Resource {
    pub(super) fn announce_out_of_sync(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        range: Option<(u64, u64)>,
    ) {
        if let Some((sector, end)) = range {
            let (peer, volume) = (self.conns[cidx].node(), self.volumes[vidx].nr);
            cx.out.push(Action::Event(Event::OutOfSync { peer, volume, sector, sectors: end - sector }));
        }
    }

    /// Tell what came of it; what was marked goes to the disk.
    pub(super) fn verify_over(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, mut tally: Tally, complete: bool) {
        let range = tally.range.take();
        self.announce_out_of_sync(cx, cidx, vidx, range);
        let (peer, volume) = (self.conns[cidx].node(), self.volumes[vidx].nr);
        let Tally { done, different, skipped, .. } = tally;
        let compared_sectors = done - skipped;
        cx.out.push(Action::Event(Event::VerifyDone {
            peer,
            volume,
            compared_sectors,
            different_sectors: different,
            skipped_sectors: skipped,
            complete,
        }));
        self.conns[cidx].pds[vidx].verify.last = Some(tally.status(complete));
        let end = if complete { "is complete" } else { "was interrupted" };
        let text = format!(
            "volume {volume}: verify with node {peer} {end}: {} KiB compared, {} KiB skipped (written to meanwhile), {} KiB \
             out of sync{}",
            compared_sectors / 2,
            skipped / 2,
            different / 2,
            if different > 0 { self.how_to_repair(cidx, vidx) } else { String::new() }
        );
        cx.notice(if different > 0 { Severity::Error } else { Severity::Info }, text);
        if self.volumes[vidx].dirty_bits(peer) == 0 {
            let pd = &mut self.conns[cidx].pds[vidx];
            (pd.unverified, pd.verify.due) = (false, None);
        }
        self.volumes[vidx].meta.push(Step::Bitmap);
        self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
        self.state_changed = true;
        self.again = true;
    }

    /// Whose copy is right is not known here.
    fn how_to_repair(&self, cidx: usize, vidx: usize) -> String {
        let (name, peer, volume) = (&self.config.name, &self.conns[cidx].config.name, self.volumes[vidx].nr);
        if self.conns[cidx].keeps_bits() || self.conns[cidx].speaks_84() {
            format!(
                ". To resync these blocks from the Primary: zea disconnect {name} {peer}; zea connect {name} {peer}. If the \
                 other copy is right, on the node whose copy is wrong: zea invalidate {name} {volume}"
            )
        } else {
            format!(
                ". The peer forgets such marks when it connects. On the node whose copy is wrong: zea invalidate {name} {volume}, \
                 or with kernel DRBD drbdadm invalidate {name}/{volume}"
            )
        }
    }
}
