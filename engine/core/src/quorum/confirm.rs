//! A vote counts for a write only if its node was heard from after the write had begun: a connection that is broken, and that this
//! node does not know to be, may belong to another group by now. Who gets the write answers by that; others answer a ping.

use zea_wire::ids::NodeMask;

use super::standing::View;
use super::{Rule, Standing, count};
use crate::resource::{Ctx, Resource};

impl Resource {
    /// Enough voters have this write, or were heard from since it began. The others are asked for a sign of life.
    pub(crate) fn is_confirmed(&mut self, cx: &mut Ctx<'_>, index: usize) -> bool {
        let w = &self.writes[index];
        let (vidx, since, ok) = (w.vidx, w.since, w.ok);
        if !self.counts_votes() || self.volumes[vidx].standing != Standing::Counted(Rule::Votes) {
            return true;
        }
        let mut silent = NodeMask::EMPTY;
        for c in self.conns.iter().filter(|c| c.is_up() && !ok.contains(c.node())) {
            let alive = c.link.as_ref().and_then(|link| link.alive_at);
            if alive.is_none_or(|t| t < since) {
                silent.insert(c.node());
            }
        }
        if count(&self.config.quorum, &self.electorate(vidx, View::Silent(silent))).has_quorum() {
            return true;
        }
        for cidx in self.up_conns() {
            let asked = self.conns[cidx].link.as_ref().is_some_and(|link| link.ping_sent.is_some());
            if silent.contains(self.conns[cidx].node()) && !asked {
                self.ping(cx, cidx);
            }
        }
        false
    }

    /// A peer has answered a ping: writes may have waited for that.
    pub(crate) fn heard_voter(&mut self, cx: &mut Ctx<'_>) {
        if self.counts_votes() {
            (0..self.volumes.len()).for_each(|vidx| self.writes_new_uuid(cx, vidx));
        }
    }
}
