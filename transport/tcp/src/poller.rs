//! epoll, with a number that is never used twice for each descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Events taken per wait; the rest comes with the next.
const BATCH: usize = 128;

/// What a descriptor waits for. Errors and resets are always told, and level triggered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interest {
    /// Bytes, connections, or the end.
    Read,
    /// The end of a connect.
    Write,
    /// Only the end of the stream.
    End,
    /// Nothing for now.
    Nothing,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Interest::Read => EventFlags::IN | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT,
            Interest::End => EventFlags::RDHUP,
            Interest::Nothing => EventFlags::empty(),
        }
    }
}

/// The descriptors waited for.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    next_token: u64,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, next_token: 0 })
    }

    /// Adds a descriptor; returns the token that its events bear. Closing it removes it.
    pub(crate) fn add(&mut self, fd: impl AsFd, interest: Interest) -> io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        let data = EventData::new_u64(token);
        epoll::add(&self.epoll, fd, data, interest.flags())?;
        Ok(token)
    }

    /// Changes what a descriptor waits for.
    pub(crate) fn change(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, fd, data, interest.flags())?)
    }

    /// Removes a descriptor that lives on elsewhere.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        epoll::delete(&self.epoll, fd).expect("it was added");
    }

    /// Waits for events, at most so long (`None`: for ever); returns the tokens that have one.
    pub(crate) fn wait(&self, timeout_ms: Option<u64>) -> Vec<u64> {
        // A day is as good as for ever, and fits every system call.
        let timeout = timeout_ms.map(|ms| {
            let ms = ms.min(86_400_000).cast_signed();
            Timespec { tv_sec: ms / 1_000, tv_nsec: ms % 1_000 * 1_000_000 }
        });
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("epoll_wait on an own epoll descriptor: {e}"),
        }
        events.iter().map(|event| event.data.u64()).collect()
    }
}
