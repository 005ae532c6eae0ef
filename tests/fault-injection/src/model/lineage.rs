//! Whose changes a replica has: a clock for each node, counted up whenever that node writes, or may begin a generation of
//! its own. Two replicas have diverged when each may have changes that the other lacks: then, and only then, is it a split
//! brain.

/// By replica, by writer: a node counts twice, once with a disk of its own and once, behind all nodes, without.
type Clocks = Vec<Vec<u64>>;

/// The number of a change that a writer made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    writer: usize,
    number: u64,
}

impl Change {
    pub(super) fn number(self) -> u64 {
        self.number
    }

    pub(super) fn is_of_writer_of(self, other: Change) -> bool {
        self.writer == other.writer
    }
}

/// What is known of the replicas of one volume.
#[derive(Debug, Clone)]
struct Volume {
    /// By writer: how often it wrote.
    clock: Vec<u64>,
    /// By writer: its last change that was acknowledged.
    acked: Vec<u64>,
    /// Changes that a replica certainly has.
    has: Clocks,
    /// Changes that it may have: also what is on its way to it.
    may_have: Clocks,
}

impl Volume {
    fn need_not_have(&mut self, replica: usize, change: Change) {
        let has = &mut self.has[replica][change.writer];
        *has = (*has).min(change.number - 1);
    }
}

/// All volumes.
#[derive(Debug)]
pub(super) struct Lineage {
    nodes: usize,
    volumes: Vec<Volume>,
}

impl Lineage {
    pub(super) fn new(nodes: usize) -> Lineage {
        let clocks = vec![vec![0; 2 * nodes]; nodes];
        let (clock, acked) = (vec![0; 2 * nodes], vec![0; 2 * nodes]);
        let volume = Volume { clock, acked, has: clocks.clone(), may_have: clocks };
        Lineage { nodes, volumes: vec![volume; usize::from(super::VOLUMES)] }
    }

    fn of(&mut self, volume: u16) -> &mut Volume {
        &mut self.volumes[usize::from(volume)]
    }

    /// A node writes, or becomes Primary without the others. The replicas that may come to know of it: its own, if it has one
    /// that is good, and those of nodes that are in sync.
    pub(super) fn attempt(&mut self, node: usize, replicas: &[usize], volume: u16) -> Change {
        let own = replicas.contains(&node);
        let writer = if own { node } else { self.nodes + node };
        let v = self.of(volume);
        v.clock[writer] += 1;
        let number = v.clock[writer];
        if own {
            v.has[node][node] = number;
            v.may_have[node][node] = number;
        }
        for &replica in replicas {
            match own {
                true => take_over(&mut v.may_have, replica, node),
                false => v.may_have[replica][writer] = number,
            }
        }
        Change { writer, number }
    }

    /// A change of `node` is on these replicas too; with its own one, everything that this one had before, and not what it
    /// has begun to write since, nor the `first` of its changes that is under way and what came after that: whether that is there
    /// nobody has said.
    pub(super) fn shared(
        &mut self,
        node: usize,
        change: Change,
        first: Option<Change>,
        holders: &[usize],
        volume: u16,
    ) {
        let v = self.of(volume);
        let own = holders.contains(&node);
        let acked = &mut v.acked[change.writer];
        *acked = change.number.max(*acked);
        let known = first.map_or(*acked, |first| (first.number - 1).min(*acked));
        for &holder in holders {
            for clocks in [&mut v.has, &mut v.may_have] {
                let until = clocks[holder][change.writer].max(known);
                if own {
                    take_over(clocks, holder, node);
                }
                if holder != node {
                    clocks[holder][change.writer] = until;
                }
            }
        }
    }

    /// A replica was thought to have a change, and may not.
    pub(super) fn may_lack(&mut self, replica: usize, change: Change, volume: u16) {
        self.of(volume).need_not_have(replica, change);
    }

    /// A replica that lacks what the others have becomes the truth on its node: each has changes now that the other lacks.
    pub(super) fn forked(&mut self, node: usize, volume: u16) {
        (0..self.nodes).for_each(|writer| _ = self.attempt(writer, &[writer], volume));
        let v = self.of(volume);
        for replica in (0..v.has.len()).filter(|r| *r != node) {
            v.has[replica][node] = v.has[replica][node].min(v.has[node][node] - 1);
        }
    }

    pub(super) fn is_being_resynced(&mut self, target: usize, source: usize, volume: u16) {
        take_over(&mut self.of(volume).may_have, target, source);
    }

    /// What is `open` has been written at its source, and may still be on its way to the target.
    pub(super) fn resynced(&mut self, target: usize, source: usize, open: &[Change], volume: u16) {
        let v = self.of(volume);
        v.has[target] = v.has[source].clone();
        v.may_have[target] = v.may_have[source].clone();
        open.iter().for_each(|change| v.need_not_have(target, *change));
    }

    /// Likewise what is `open`.
    pub(super) fn joined(&mut self, a: usize, b: usize, open: &[Change], volume: u16) {
        let v = self.of(volume);
        let before = [a, b].map(|replica| (replica, v.has[replica].clone()));
        for clocks in [&mut v.has, &mut v.may_have] {
            take_over(clocks, a, b);
            take_over(clocks, b, a);
        }
        for (replica, had) in before {
            open.iter().filter(|c| c.number > had[c.writer]).for_each(|change| v.need_not_have(replica, *change));
        }
    }

    pub(super) fn diverged(&self, a: usize, b: usize, volume: u16) -> bool {
        let v = &self.volumes[usize::from(volume)];
        let ahead = |x: usize, y: usize| (0..v.clock.len()).any(|writer| v.may_have[x][writer] > v.has[y][writer]);
        ahead(a, b) && ahead(b, a)
    }
}

fn take_over(clocks: &mut Clocks, to: usize, from: usize) {
    for writer in 0..clocks[to].len() {
        clocks[to][writer] = clocks[to][writer].max(clocks[from][writer]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_lineage_tells_behind_from_diverged() {
        let mut l = Lineage::new(3);
        let change = l.attempt(0, &[0], 0);
        l.shared(0, change, None, &[0, 1], 0);
        assert!(!l.diverged(0, 1, 0));
        l.attempt(0, &[0], 0);
        assert!(!l.diverged(0, 1, 0), "node 1 is behind");
        l.attempt(1, &[1], 0);
        assert!(l.diverged(0, 1, 0));
        assert!(!l.diverged(0, 1, 1), "another volume");
        l.resynced(1, 0, &[], 0);
        assert!(!l.diverged(0, 1, 0));
        assert!(!l.diverged(1, 2, 0));
    }

    #[test]
    fn sim_lineage_of_a_disk_that_failed_under_early_acks() {
        let mut l = Lineage::new(2);
        let change = l.attempt(0, &[0, 1], 0);
        l.shared(0, change, None, &[0, 1], 0);
        l.attempt(1, &[1], 0);
        assert!(!l.diverged(0, 1, 0), "node 0 is behind");
        l.may_lack(1, change, 0);
        assert!(l.diverged(0, 1, 0));
    }

    #[test]
    fn sim_lineage_of_an_ack_with_later_writes_under_way() {
        let mut l = Lineage::new(2);
        let first = l.attempt(0, &[0, 1], 0);
        l.attempt(0, &[0, 1], 0);
        l.shared(0, first, None, &[0, 1], 0);
        l.attempt(1, &[1], 0);
        assert!(l.diverged(0, 1, 0), "node 1 need not have the second");
    }

    #[test]
    fn sim_lineage_of_acks_out_of_order() {
        let mut l = Lineage::new(2);
        let first = l.attempt(0, &[0, 1], 0);
        let second = l.attempt(0, &[0, 1], 0);
        l.shared(0, second, Some(first), &[0, 1], 0);
        l.attempt(1, &[1], 0);
        assert!(l.diverged(0, 1, 0), "nobody has said that node 1 has the first");
        l.shared(0, first, None, &[0, 1], 0);
        assert!(!l.diverged(0, 1, 0), "node 1 has both");
    }

    #[test]
    fn sim_lineage_of_a_resync_with_a_write_under_way() {
        let mut l = Lineage::new(2);
        let open = l.attempt(0, &[0], 0);
        l.resynced(1, 0, &[open], 0);
        l.attempt(1, &[1], 0);
        assert!(l.diverged(0, 1, 0), "node 1 need not have it");
        l.shared(0, open, None, &[0, 1], 0);
        assert!(!l.diverged(0, 1, 0), "node 1 has it");
    }

    #[test]
    fn sim_lineage_of_replicas_that_are_joined_with_a_write_under_way() {
        let mut l = Lineage::new(2);
        let open = l.attempt(0, &[0], 0);
        l.joined(0, 1, &[open], 0);
        l.attempt(1, &[1], 0);
        assert!(l.diverged(0, 1, 0), "node 1 need not have it");
        l.joined(0, 1, &[], 0);
        assert!(!l.diverged(0, 1, 0));
    }

    #[test]
    fn sim_lineage_allows_for_what_is_on_its_way() {
        let mut l = Lineage::new(3);
        l.attempt(0, &[0], 0);
        l.attempt(2, &[2, 1], 0);
        assert!(l.diverged(0, 1, 0), "node 1 may have followed node 2");
        assert!(!l.diverged(1, 2, 0));
    }

    #[test]
    fn sim_lineage_of_a_writer_without_a_disk_is_that_of_its_peers() {
        let mut l = Lineage::new(2);
        let change = l.attempt(0, &[0, 1], 0);
        l.shared(0, change, None, &[0, 1], 0);
        let change = l.attempt(0, &[1], 0);
        l.shared(0, change, None, &[1], 0);
        assert!(!l.diverged(0, 1, 0), "the disk of node 0 is behind");
        l.attempt(0, &[0], 0);
        assert!(l.diverged(0, 1, 0), "it goes on from there");
    }

    #[test]
    fn sim_lineage_of_a_forced_copy_is_its_own() {
        let mut l = Lineage::new(2);
        let change = l.attempt(0, &[0], 0);
        l.shared(0, change, None, &[0, 1], 0);
        l.forked(0, 0);
        assert!(l.diverged(0, 1, 0));
    }
}
