//! Whose changes a replica has: a clock for each node, counted up whenever that node writes, or may begin a generation of
//! its own. Two replicas have diverged when each has changes that the other lacks: then, and only then, is it a split brain.

/// By volume, by replica, by writer.
#[derive(Debug)]
pub(super) struct Lineage {
    nodes: usize,
    clocks: Vec<Vec<Vec<u64>>>,
}

impl Lineage {
    pub(super) fn new(nodes: usize) -> Lineage {
        Lineage { nodes, clocks: vec![vec![vec![0; nodes]; nodes]; usize::from(super::VOLUMES)] }
    }

    fn of(&mut self, volume: u16) -> &mut Vec<Vec<u64>> {
        &mut self.clocks[usize::from(volume)]
    }

    /// A node writes, or becomes Primary without the others.
    pub(super) fn attempt(&mut self, node: usize, volume: u16) {
        self.of(volume)[node][node] += 1;
    }

    /// What `node` wrote is on these nodes too.
    pub(super) fn shared(&mut self, node: usize, holders: &[usize], volume: u16) {
        for holder in holders.iter().filter(|h| **h != node) {
            self.take_over(*holder, node, volume);
        }
    }

    fn take_over(&mut self, to: usize, from: usize, volume: u16) {
        let clocks = self.of(volume);
        for writer in 0..clocks[to].len() {
            clocks[to][writer] = clocks[to][writer].max(clocks[from][writer]);
        }
    }

    pub(super) fn resynced(&mut self, target: usize, source: usize, volume: u16) {
        self.of(volume)[target] = self.clocks[usize::from(volume)][source].clone();
    }

    pub(super) fn joined(&mut self, a: usize, b: usize, volume: u16) {
        self.take_over(a, b, volume);
        self.take_over(b, a, volume);
    }

    pub(super) fn diverged(&self, a: usize, b: usize, volume: u16) -> bool {
        let clocks = &self.clocks[usize::from(volume)];
        let ahead = |x: usize, y: usize| (0..self.nodes).any(|writer| clocks[x][writer] > clocks[y][writer]);
        ahead(a, b) && ahead(b, a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_lineage_tells_behind_from_diverged() {
        let mut l = Lineage::new(3);
        l.attempt(0, 0);
        l.shared(0, &[1], 0);
        assert!(!l.diverged(0, 1, 0));
        l.attempt(0, 0);
        assert!(!l.diverged(0, 1, 0), "node 1 is behind");
        l.attempt(1, 0);
        assert!(l.diverged(0, 1, 0));
        assert!(!l.diverged(0, 1, 1), "another volume");
        l.resynced(1, 0, 0);
        assert!(!l.diverged(0, 1, 0));
        assert!(!l.diverged(1, 2, 0));
    }
}
