//! Bits of which a target hears while its resync goes on (P_OUT_OF_SYNC). Before the first request all bits were made stable; these are
//! left out until they are, too: after a loss of power a block that was replaced, and that nothing marks, would pass for what third
//! nodes have.

use rkyv::{Archive, Deserialize, Serialize};

use crate::connection::ResyncTarget;
use crate::limits;
use crate::meta_queue::{Step, Then};
use crate::resource::Resource;

/// Ranges of bits, first and last, that may not be stable yet.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct LateBits {
    ranges: Vec<(u64, u64)>,
    /// The meta data that is queued makes so many of them stable; the number of its last step.
    queued: Option<(usize, u64)>,
}

impl LateBits {
    /// The bit behind the range that a bit is in.
    pub(crate) fn behind(&self, bit: u64) -> Option<u64> {
        self.ranges.iter().find(|(first, last)| (*first..=*last).contains(&bit)).map(|(_, last)| last + 1)
    }

    /// How many bits there are from this one to the next range.
    pub(crate) fn distance(&self, bit: u64) -> Option<u64> {
        self.ranges.iter().filter(|(first, _)| *first > bit).map(|(first, _)| first - bit).min()
    }

    fn insert(&mut self, first: u64, last: u64) {
        let queued = self.queued.map_or(0, |(n, _)| n);
        if self.ranges.len() - queued < limits::MAX_LATE_RANGES {
            self.ranges.push((first, last));
        } else {
            let wide = self.ranges.last_mut().expect("it is full");
            *wide = (wide.0.min(first), wide.1.max(last));
        }
    }

    fn stable(&mut self, nr: u64) {
        if let Some((n, _)) = self.queued.take_if(|(_, last)| *last == nr) {
            self.ranges.drain(..n);
        }
    }
}

impl Resource {
    /// The source has told of more.
    pub(crate) fn late_bits_told(&mut self, cidx: usize, vidx: usize, sector: u64, len: u32) {
        let Some(a) = self.volumes[vidx].attached.as_ref() else { return };
        let Some((first, last)) = a.bitmap.bits_touched(sector, u64::from(len) / 512) else { return };
        if let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut() {
            r.late.insert(first, last);
            self.late_bits_step(cidx, vidx);
        }
    }

    /// The meta data with this number is stable.
    pub(crate) fn late_bits_stable(&mut self, cidx: usize, vidx: usize, nr: u64) {
        if let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut() {
            r.late.stable(nr);
            self.late_bits_step(cidx, vidx);
        }
    }

    fn late_bits_step(&mut self, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let Some(ResyncTarget { late, .. }) = self.conns[cidx].pds[vidx].resync.as_mut() else { return };
        if late.ranges.is_empty() || late.queued.is_some() {
            return;
        }
        let nr = self.next_block_id;
        self.next_block_id += 1;
        late.queued = Some((late.ranges.len(), nr));
        let meta = &mut self.volumes[vidx].meta;
        meta.push(Step::Bitmap);
        meta.push(Step::Then(Then::ResyncBegins(node, nr)));
    }
}
