//! How other threads reach a shard: a bounded queue, and an eventfd that the ring reads.
//!
//! The eventfd is written once for a burst of messages: the sender that finds the flag down raises it and writes; the
//! shard lowers the flag before it empties the queue, so that no message is left without a wake-up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};

/// Why a message was not taken; it comes back.
#[derive(Debug)]
pub(crate) enum Undelivered<M> {
    /// The mailbox stayed full.
    Full(M),
    /// The shard is gone.
    Gone(M),
}

#[derive(Debug)]
struct Bell {
    fd: OwnedFd,
    raised: AtomicBool,
}

/// The outer side, for any number of threads.
#[derive(Debug)]
pub(crate) struct Mail<M> {
    queue: Sender<M>,
    bell: Arc<Bell>,
}

impl<M> Clone for Mail<M> {
    fn clone(&self) -> Self {
        Mail { queue: self.queue.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// The shard's side.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    queue: Receiver<M>,
    bell: Arc<Bell>,
}

/// A mailbox for `capacity` messages.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn mailbox<M>(capacity: usize) -> std::io::Result<(Mail<M>, Mailbox<M>)> {
    // Blocking: a read in the ring waits for the bell.
    let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
    let bell = Arc::new(Bell { fd, raised: AtomicBool::new(false) });
    let (sender, receiver) = bounded(capacity);
    Ok((Mail { queue: sender, bell: Arc::clone(&bell) }, Mailbox { queue: receiver, bell }))
}

impl<M> Mail<M> {
    /// Sends, waiting up to `patience` while the mailbox is full.
    pub(crate) fn send(&self, message: M, patience: Duration) -> Result<(), Undelivered<M>> {
        let result = match self.queue.try_send(message) {
            Err(TrySendError::Full(message)) => self.queue.send_timeout(message, patience).map_err(|e| match e {
                SendTimeoutError::Timeout(m) => Undelivered::Full(m),
                SendTimeoutError::Disconnected(m) => Undelivered::Gone(m),
            }),
            Err(TrySendError::Disconnected(message)) => Err(Undelivered::Gone(message)),
            Ok(()) => Ok(()),
        };
        if result.is_ok() && !self.bell.raised.swap(true, Ordering::SeqCst) {
            let written = rustix::io::write(&self.bell.fd, &1_u64.to_ne_bytes());
            assert_eq!(written, Ok(8), "an eventfd takes a count");
        }
        result
    }
}

impl<M> Mailbox<M> {
    /// What the ring reads 8 bytes from; then comes [`Mailbox::lower`].
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.fd.as_fd()
    }

    /// The bell was read: later senders ring again. Empty the queue after this.
    pub(crate) fn lower(&self) {
        self.bell.raised.store(false, Ordering::SeqCst);
    }

    /// The next message.
    pub(crate) fn take(&self) -> Option<M> {
        self.queue.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the bell as the ring would; blocks until it rings.
    fn hear<M>(mailbox: &Mailbox<M>) {
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(mailbox.bell(), &mut count), Ok(8));
        mailbox.lower();
    }

    #[test]
    fn mailbox_rings_once_for_a_burst() {
        let (mail, mailbox) = mailbox(8).expect("a mailbox");
        for i in 0..5 {
            mail.send(i, Duration::ZERO).expect("room");
        }
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(mailbox.bell(), &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 1);
        mailbox.lower();
        let got: Vec<i32> = std::iter::from_fn(|| mailbox.take()).collect();
        assert_eq!(got, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn mailbox_full_and_gone_give_the_message_back() {
        let (mail, mailbox) = mailbox(1).expect("a mailbox");
        mail.send(1, Duration::ZERO).expect("room");
        assert!(matches!(mail.send(2, Duration::from_millis(5)), Err(Undelivered::Full(2))));
        drop(mailbox);
        assert!(matches!(mail.send(3, Duration::ZERO), Err(Undelivered::Gone(3))));
    }

    #[test]
    fn mailbox_loses_no_wake_up() {
        const SENDERS: usize = 4;
        const EACH: usize = 5_000;
        let (mail, mailbox) = mailbox(16).expect("a mailbox");
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let mail = mail.clone();
                std::thread::spawn(move || {
                    (0..EACH).for_each(|i| mail.send(i, Duration::from_secs(30)).expect("is emptied"));
                })
            })
            .collect();
        let mut got = 0;
        // Hangs where a message came without a ring.
        while got < SENDERS * EACH {
            hear(&mailbox);
            while mailbox.take().is_some() {
                got += 1;
            }
        }
        senders.into_iter().for_each(|s| s.join().expect("no panic"));
        assert!(mailbox.take().is_none());
    }
}
