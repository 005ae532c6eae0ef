//! Holds back notices that say again what was said a moment ago: a write that waits for space tries again ten times a
//! second, and so does a connection that is refused. The first of them is news, the hundredth hides what is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a notice is not said again.
const QUIET: Duration = Duration::from_secs(30);
/// Notices that are remembered.
const MAX_NOTICES: usize = 256;

/// What was said, by resource and text.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    said: BTreeMap<(String, String), Said>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    held_back: u64,
}

impl Repeats {
    /// Whether a notice is to be said, and then how often it was held back since the last time.
    pub(super) fn say(&mut self, resource: &str, text: &str, now: Instant) -> Option<u64> {
        let key = (resource.to_owned(), text.to_owned());
        if let Some(said) = self.said.get_mut(&key) {
            if now.saturating_duration_since(said.at) < QUIET {
                said.held_back += 1;
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.held_back));
        }
        if self.said.len() >= MAX_NOTICES {
            self.forget_oldest();
        }
        self.said.insert(key, Said { at: now, held_back: 0 });
        Some(0)
    }

    fn forget_oldest(&mut self) {
        if let Some(key) = self.said.iter().min_by_key(|(_, said)| said.at).map(|(key, _)| key.clone()) {
            self.said.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_says_a_notice_once_and_later_how_often() {
        let (mut repeats, begin) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.say("r0", "full", begin), Some(0));
        assert_eq!(repeats.say("r1", "full", begin), Some(0));
        assert_eq!(repeats.say("r0", "failed", begin), Some(0));
        for ms in [100, 200, 29_999] {
            assert_eq!(repeats.say("r0", "full", begin + Duration::from_millis(ms)), None);
        }
        assert_eq!(repeats.say("r0", "full", begin + QUIET), Some(3));
        assert_eq!(repeats.say("r0", "full", begin + 2 * QUIET), Some(0));
    }

    #[test]
    fn node_remembers_a_bounded_number_of_notices() {
        let (mut repeats, begin) = (Repeats::default(), Instant::now());
        for nr in 0..MAX_NOTICES as u64 + 10 {
            assert_eq!(repeats.say("r0", &nr.to_string(), begin + Duration::from_millis(nr)), Some(0));
        }
        assert_eq!(repeats.said.len(), MAX_NOTICES);
        assert_eq!(repeats.say("r0", "300", begin), Some(0), "forgotten");
        assert_eq!(repeats.say("r0", "265", begin), None, "the newest are remembered");
    }
}
