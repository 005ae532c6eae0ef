//! Time and randomness for the cores of a shard.

use std::time::Instant;

use zea_core::io::{Rng, Time};

/// Monotonic time since the shard began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now(&self) -> Time {
        // 584 years fit.
        Time(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The kernel's random numbers, fetched ahead of use: challenges and UUIDs must not be guessable.
#[derive(Debug)]
pub(crate) struct KernelRng {
    words: [u64; 64],
    used: usize,
}

impl KernelRng {
    pub(crate) fn new() -> KernelRng {
        KernelRng { words: [0; 64], used: 64 }
    }

    fn refill(&mut self) {
        for word in &mut self.words {
            *word = getrandom::u64().expect("the kernel has random numbers");
        }
        self.used = 0;
    }
}

impl Rng for KernelRng {
    fn next_u64(&mut self) -> u64 {
        if self.used == self.words.len() {
            self.refill();
        }
        // A word is used once.
        let word = std::mem::take(&mut self.words[self.used]);
        self.used += 1;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_moves_forward_and_random_words_differ() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(clock.now() >= first);
        let mut rng = KernelRng::new();
        let words: std::collections::BTreeSet<u64> = (0..1000).map(|_| rng.next_u64()).collect();
        assert_eq!(words.len(), 1000);
    }
}
