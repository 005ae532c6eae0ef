//! Hands events to everybody who listens, and never waits for a slow one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::api::Event;

/// Events that wait for one listener; beyond, events are counted and dropped.
const QUEUE_EVENTS: usize = 1024;

/// Where events come in.
#[derive(Debug, Default)]
pub struct Hub {
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    only: Option<String>,
    queue: SyncSender<Event>,
    skipped: Arc<AtomicU64>,
}

/// Where one listener takes them out.
#[derive(Debug)]
pub struct Subscription {
    queue: Receiver<Event>,
    skipped: Arc<AtomicU64>,
}

impl Hub {
    /// A hub without listeners.
    pub fn new() -> Arc<Hub> {
        Arc::default()
    }

    /// Gives an event to all listeners that want it.
    pub fn publish(&self, event: &Event) {
        let mut listeners = self.listeners.lock().expect("no listener panics");
        listeners.retain(|listener| {
            // What concerns no resource (events are missing) concerns everybody.
            let other = |only: &String| *only != event.name && !event.name.is_empty();
            if listener.only.as_ref().is_some_and(other) {
                return true;
            }
            match listener.queue.try_send(event.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    listener.skipped.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }

    /// Listen to all events, or to those of one resource. Ends when the subscription is dropped.
    pub fn subscribe(&self, only: Option<&str>) -> Subscription {
        let (sender, queue) = sync_channel(QUEUE_EVENTS);
        let skipped = Arc::new(AtomicU64::new(0));
        let listener = Listener { only: only.map(str::to_owned), queue: sender, skipped: Arc::clone(&skipped) };
        self.listeners.lock().expect("no listener panics").push(listener);
        Subscription { queue, skipped }
    }
}

impl Subscription {
    /// The next event; `None` if none came in time. Missed events show as one [`Event::skipped`].
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        match self.queue.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let skipped = self.skipped.swap(0, Ordering::Relaxed);
                (skipped > 0).then(|| Event::skipped(skipped))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{EventAction, EventBody};

    fn event(name: &str) -> Event {
        Event { action: EventAction::Destroy, name: name.into(), body: EventBody::gone_resource() }
    }

    #[test]
    fn control_hub_filters_by_resource() {
        let hub = Hub::new();
        let (all, one) = (hub.subscribe(None), hub.subscribe(Some("r1")));
        hub.publish(&event("r0"));
        hub.publish(&event("r1"));
        assert_eq!(one.next(Duration::ZERO), Some(event("r1")));
        assert_eq!(one.next(Duration::ZERO), None);
        assert_eq!(all.next(Duration::ZERO), Some(event("r0")));
        hub.publish(&Event::skipped(7));
        assert_eq!(one.next(Duration::ZERO), Some(Event::skipped(7)));
    }

    #[test]
    fn control_hub_tells_a_slow_reader_what_it_missed() {
        let hub = Hub::new();
        let slow = hub.subscribe(None);
        for _ in 0..QUEUE_EVENTS + 3 {
            hub.publish(&event("r0"));
        }
        for _ in 0..QUEUE_EVENTS {
            assert_eq!(slow.next(Duration::ZERO), Some(event("r0")));
        }
        assert_eq!(slow.next(Duration::ZERO), Some(Event::skipped(3)));
        assert_eq!(slow.next(Duration::ZERO), None);
    }

    #[test]
    fn control_hub_forgets_listeners_that_are_gone() {
        let hub = Hub::new();
        drop(hub.subscribe(None));
        hub.publish(&event("r0"));
        assert!(hub.listeners.lock().unwrap().is_empty());
    }
}
