//! The buffers of one node, with the ownership rules of `zea_core::io::BufId` enforced: the core owns what it was given
//! until it frees it, a request's buffer belongs to the request until its completion, disk reads in flight hold
//! references of the runtime. Each 512 byte sector of a payload is a tag; 0 stands for a sector of zeroes.

use std::collections::BTreeMap;

use zea_core::io::{BufId, Payload, ReqId};

/// Content of one sector.
pub type Tag = u64;

/// What a buffer holds that nobody has filled: a read that returns it is wrong.
pub const POISON: Tag = u64::MAX;

#[derive(Debug)]
struct Buf {
    tags: Vec<Tag>,
    core: bool,
    request: Option<ReqId>,
    pins: u32,
}

impl Buf {
    fn unused(&self) -> bool {
        !self.core && self.request.is_none() && self.pins == 0
    }
}

/// The buffer pool of a node. Numbers are never used twice, so that a use after free is found.
#[derive(Debug, Default)]
pub struct Pool {
    bufs: BTreeMap<u32, Buf>,
    next: u32,
}

impl Pool {
    fn insert(&mut self, tags: Vec<Tag>, core: bool, request: Option<ReqId>) -> BufId {
        self.next += 1;
        self.bufs.insert(self.next, Buf { tags, core, request, pins: 0 });
        BufId(self.next)
    }

    /// A filled buffer that the core gets with an input.
    pub fn give_to_core(&mut self, tags: Vec<Tag>) -> BufId {
        self.insert(tags, true, None)
    }

    /// The buffer of a front-end request.
    pub fn give_to_request(&mut self, tags: Vec<Tag>, request: ReqId) -> BufId {
        self.insert(tags, false, Some(request))
    }

    fn named(&mut self, payload: Payload) -> (&mut Buf, std::ops::Range<usize>) {
        let Payload { buf, offset, len } = payload;
        let Some(found) = self.bufs.get_mut(&buf.0) else {
            panic!("buffer {} is named by an action after it was given back", buf.0)
        };
        assert!(
            found.core || found.request.is_some(),
            "buffer {} is named by an action after the core gave it back",
            buf.0
        );
        assert!(offset % 512 == 0 && len % 512 == 0 && len > 0, "payload is not made of sectors: {payload:?}");
        let range = (offset / 512) as usize..((offset + len) / 512) as usize;
        assert!(range.end <= found.tags.len(), "payload exceeds its buffer: {payload:?}");
        (found, range)
    }

    /// The sectors that an action names.
    pub fn read(&mut self, payload: Payload) -> Vec<Tag> {
        let (buf, range) = self.named(payload);
        buf.tags[range].to_vec()
    }

    /// An action copies between two buffers.
    pub fn copy(&mut self, from: Payload, to: Payload) {
        assert_eq!(from.len, to.len, "a copy between payloads of different length");
        let tags = self.read(from);
        let (buf, range) = self.named(to);
        buf.tags[range].copy_from_slice(&tags);
    }

    /// A disk read into the payload begins.
    pub fn pin(&mut self, payload: Payload) {
        self.named(payload).0.pins += 1;
    }

    /// A disk read into the payload ends, with `tags` if it succeeded.
    pub fn unpin(&mut self, payload: Payload, tags: Option<&[Tag]>) {
        let buf = self.bufs.get_mut(&payload.buf.0).expect("a pinned buffer exists");
        if let Some(tags) = tags {
            let first = (payload.offset / 512) as usize;
            buf.tags[first..first + tags.len()].copy_from_slice(tags);
        }
        buf.pins -= 1;
        self.drop_unused(payload.buf);
    }

    /// The core gives a buffer back.
    pub fn free(&mut self, buf: BufId) {
        let Some(found) = self.bufs.get_mut(&buf.0) else { panic!("buffer {} is freed twice", buf.0) };
        assert!(found.request.is_none(), "the core frees buffer {} of a front-end request", buf.0);
        assert!(found.core, "buffer {} is freed twice", buf.0);
        found.core = false;
        self.drop_unused(buf);
    }

    /// A request is complete: its buffer goes back to the front end, with what it holds.
    pub fn finish_request(&mut self, buf: BufId, request: ReqId) -> Vec<Tag> {
        let found = self.bufs.get_mut(&buf.0).expect("a request's buffer exists until the request completes");
        assert_eq!(found.request, Some(request));
        assert_eq!(found.pins, 0, "a request completes while a disk read into its buffer is in flight");
        found.request = None;
        let tags = found.tags.clone();
        self.drop_unused(buf);
        tags
    }

    fn drop_unused(&mut self, buf: BufId) {
        if self.bufs.get(&buf.0).is_some_and(Buf::unused) {
            self.bufs.remove(&buf.0);
        }
    }

    /// Buffers that somebody still holds.
    pub fn in_use(&self) -> usize {
        self.bufs.len()
    }

    /// Who holds what, for a message about a leak.
    pub fn describe(&self) -> String {
        self.bufs
            .iter()
            .map(|(nr, b)| {
                format!("[{nr}: {} sectors, core {}, request {:?}, pins {}]", b.tags.len(), b.core, b.request, b.pins)
            })
            .take(8)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(buf: BufId, sectors: u32) -> Payload {
        Payload { buf, offset: 0, len: sectors * 512 }
    }

    #[test]
    fn sim_pool_keeps_a_pinned_buffer_after_the_core_freed_it() {
        let mut pool = Pool::default();
        let buf = pool.give_to_core(vec![POISON; 2]);
        pool.pin(whole(buf, 2));
        pool.free(buf);
        assert_eq!(pool.in_use(), 1);
        pool.unpin(whole(buf, 2), Some(&[1, 2]));
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn sim_pool_finds_a_double_free() {
        let mut pool = Pool::default();
        let buf = pool.give_to_core(vec![0]);
        pool.free(buf);
        pool.free(buf);
    }

    #[test]
    #[should_panic(expected = "after it was given back")]
    fn sim_pool_finds_a_use_after_free() {
        let mut pool = Pool::default();
        let buf = pool.give_to_core(vec![0]);
        pool.free(buf);
        pool.read(whole(buf, 1));
    }

    #[test]
    #[should_panic(expected = "of a front-end request")]
    fn sim_pool_refuses_that_the_core_frees_a_request_buffer() {
        let mut pool = Pool::default();
        let buf = pool.give_to_request(vec![0], ReqId(1));
        pool.free(buf);
    }
}
