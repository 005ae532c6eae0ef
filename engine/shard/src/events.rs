//! Events of the cores for observers: bounded queues that lose the oldest entries rather than hold the shard up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use zea_core::event::Event;

use crate::ResourceId;

/// An event of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceEvent {
    /// Which resource.
    pub resource: ResourceId,
    /// Its name.
    pub name: Arc<str>,
    /// What happened.
    pub event: Event,
}

/// A subscription. Dropping it ends it.
#[derive(Debug)]
pub struct EventStream {
    queue: Receiver<ResourceEvent>,
    lost: Arc<AtomicU64>,
}

impl EventStream {
    /// The next event, if one came within `patience`. `Err`: the shard is gone and everything was read.
    ///
    /// # Errors
    /// [`ShardGone`].
    pub fn next(&self, patience: Duration) -> Result<Option<ResourceEvent>, ShardGone> {
        match self.queue.recv_timeout(patience) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(ShardGone),
        }
    }

    /// The next event, whenever it comes.
    ///
    /// # Errors
    /// [`ShardGone`], when everything was read.
    pub fn wait(&self) -> Result<ResourceEvent, ShardGone> {
        self.queue.recv().map_err(|_| ShardGone)
    }

    /// Takes the number of events that were lost since the last call, because nobody read them in time: take a new
    /// status then.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// For use with `crossbeam_channel::select`.
    pub fn receiver(&self) -> &Receiver<ResourceEvent> {
        &self.queue
    }
}

/// The shard's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard has ended")]
pub struct ShardGone;

/// The shard's side of a subscription.
#[derive(Debug)]
pub(crate) struct Subscriber {
    queue: Sender<ResourceEvent>,
    /// To drop the oldest.
    oldest: Receiver<ResourceEvent>,
    lost: Arc<AtomicU64>,
}

/// A subscription of at most `capacity` unread events.
pub(crate) fn subscription(capacity: usize) -> (Subscriber, EventStream) {
    let (sender, receiver) = bounded(capacity.max(1));
    let lost = Arc::new(AtomicU64::new(0));
    let stream = EventStream { queue: receiver.clone(), lost: Arc::clone(&lost) };
    (Subscriber { queue: sender, oldest: receiver, lost }, stream)
}

impl Subscriber {
    /// Delivers an event. `false`: the subscription was dropped.
    pub(crate) fn deliver(&self, mut event: ResourceEvent) -> bool {
        // This side holds one of the two references to the counter.
        if Arc::strong_count(&self.lost) == 1 {
            return false;
        }
        while let Err(TrySendError::Full(back)) = self.queue.try_send(event) {
            if self.oldest.try_recv().is_ok() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            event = back;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zea_core::event::Severity;

    fn event(n: usize) -> ResourceEvent {
        let event = Event::Notice { severity: Severity::Info, text: n.to_string() };
        ResourceEvent { resource: ResourceId(1), name: "r0".into(), event }
    }

    #[test]
    fn events_lose_the_oldest_and_count_them() {
        let (subscriber, stream) = subscription(3);
        (0..5).for_each(|n| assert!(subscriber.deliver(event(n))));
        assert_eq!(stream.take_lost(), 2);
        assert_eq!(stream.take_lost(), 0);
        for n in 2..5 {
            assert_eq!(stream.next(Duration::ZERO), Ok(Some(event(n))));
        }
        assert_eq!(stream.next(Duration::ZERO), Ok(None));
    }

    #[test]
    fn events_end_with_either_side() {
        let (subscriber, stream) = subscription(3);
        assert!(subscriber.deliver(event(0)));
        drop(subscriber);
        assert_eq!(stream.next(Duration::ZERO), Ok(Some(event(0))));
        assert_eq!(stream.next(Duration::ZERO), Err(ShardGone));
        let (subscriber, stream) = subscription(3);
        drop(stream);
        assert!(!subscriber.deliver(event(1)));
    }
}
