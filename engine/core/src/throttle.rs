//! Where the limits of a resync are kept: on the target before it asks, on the source before it serves (handshake-and-states.md 6.7).

use zea_wire::ids::VolumeNr;
use zea_wire::state::Role;

use crate::io::Time;
use crate::peer_request::Kind;
use crate::resource::{Ctx, Resource};
use crate::resync_rate::ResyncOptions;

impl Resource {
    /// Other limits, from now on.
    pub(crate) fn set_resync_options(&mut self, volume: VolumeNr, options: ResyncOptions) -> bool {
        let Some(vidx) = self.vidx(volume) else { return false };
        self.volumes[vidx].config.disk.resync = options;
        for c in &mut self.conns {
            c.pds[vidx].serves_at = None;
            if let Some(r) = c.pds[vidx].resync.as_mut() {
                r.asks_at = None;
            }
        }
        true
    }

    /// An application, here or at a Primary, reads or writes so much.
    pub(crate) fn note_use(&mut self, cx: &Ctx<'_>, vidx: usize, bytes: u32) {
        let v = &mut self.volumes[vidx];
        if v.config.disk.resync.min_rate_kib > 0 {
            v.used.note(cx.now, u64::from(bytes) / 512);
        }
    }

    /// Sectors that a target may ask for at once, as things are; `None`: later.
    pub(crate) fn may_ask(&mut self, cx: &Ctx<'_>, cidx: usize, vidx: usize) -> Option<u64> {
        let v = &mut self.volumes[vidx];
        let options = v.config.disk.resync;
        if options == ResyncOptions::default() {
            return Some(u64::MAX);
        }
        let in_use = options.min_rate_kib > 0 && v.used.is_in_use(cx.now);
        let r = self.conns[cidx].pds[vidx].resync.as_mut()?;
        if r.asks_at.is_some_and(|t| cx.now < t) {
            return None;
        }
        match r.pace.ask(cx.now, &options, in_use, r.in_flight_sectors) {
            Ok(sectors) => {
                r.asks_at = None;
                (sectors > 0).then_some(sectors)
            }
            Err(at) => {
                r.asks_at = Some(at);
                None
            }
        }
    }

    /// Whether the source of a resync serves this request now: an application on this node goes first, unless the target is its
    /// Primary.
    pub(crate) fn may_serve(&mut self, cx: &Ctx<'_>, index: usize) -> bool {
        let p = &self.peer_reqs[index];
        let (vidx, sectors) = (p.vidx, p.sectors());
        let options = self.volumes[vidx].config.disk.resync;
        if p.kind != Kind::ResyncRead || options.min_rate_kib == 0 {
            return true;
        }
        let Some(cidx) = self.cidx(p.node).filter(|&c| self.conns[c].role != Role::Primary) else { return true };
        if !self.volumes[vidx].used.is_in_use(cx.now) {
            return true;
        }
        let pd = &mut self.conns[cidx].pds[vidx];
        match pd.serves.ready(cx.now, options.min_rate_kib) {
            Ok(_) => pd.serves.take(sectors),
            Err(at) => pd.serves_at = Some(pd.serves_at.map_or(at, |other| other.min(at))),
        }
        pd.serves_at.is_none()
    }

    /// What waited for its time is served.
    pub(crate) fn serve_steps(&mut self, cx: &mut Ctx<'_>) {
        let mut due = false;
        for pd in self.conns.iter_mut().flat_map(|c| &mut c.pds) {
            due |= pd.serves_at.take_if(|t| cx.now >= *t).is_some();
        }
        if due {
            self.dagtag_arrived(cx);
        }
    }

    /// When a request that waits for its time is to be looked at.
    pub(crate) fn next_throttled(&self) -> Option<Time> {
        let pds = self.conns.iter().flat_map(|c| &c.pds);
        let times = pds.flat_map(|pd| [pd.serves_at, pd.resync.as_ref().and_then(|r| r.asks_at)]);
        times.flatten().filter(|t| *t > self.now).min()
    }

    /// A resync has moved so much.
    pub(crate) fn note_moved(&mut self, cx: &Ctx<'_>, cidx: usize, vidx: usize, bytes: u32) {
        self.conns[cidx].pds[vidx].meter.moved(cx.now, u64::from(bytes) / 512);
    }
}
