//! One sparse array of bits: clean and completely set regions cost no memory.
//!
//! Two levels: the array is cut into chunks of 64 pages, a page holds 32 Kibit (4 KiB). Chunks and pages exist
//! only where bits are mixed. The number of set bits is kept at every level, so counting is O(1) and a region that
//! becomes uniform gives its memory back at once.

use rkyv::{Archive, Deserialize, Serialize};

/// Bits in one page.
pub(super) const PAGE_BITS: u64 = 32 * 1024;
const PAGE_WORDS: usize = (PAGE_BITS / 64) as usize;
const CHUNK_PAGES: usize = 64;
const CHUNK_BITS: u64 = PAGE_BITS * CHUNK_PAGES as u64;

#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
enum Page {
    Clear,
    /// All bits that exist in this page are set.
    Full,
    /// Mixed; `set` is in 1..PAGE_BITS.
    Bits {
        set: u16,
        words: Box<[u64; PAGE_WORDS]>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
enum Chunk {
    Clear,
    /// All bits that exist in this chunk are set.
    Full,
    Pages(Box<Pages>),
}

#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Pages {
    set: u32,
    pages: [Page; CHUNK_PAGES],
}

/// Mask of the bits `from..to` of one word, `from < to <= 64`.
fn word_mask(from: u64, to: u64) -> u64 {
    (u64::MAX >> (64 - (to - from))) << from
}

/// All `len` bits set, as seen in word `index`.
fn full_word(len: u64, index: usize) -> u64 {
    match len.saturating_sub(index as u64 * 64) {
        0 => 0,
        rest if rest >= 64 => u64::MAX,
        rest => word_mask(0, rest),
    }
}

impl Page {
    fn set_bits(&self, len: u64) -> u64 {
        match self {
            Page::Clear => 0,
            Page::Full => len,
            Page::Bits { set, .. } => u64::from(*set),
        }
    }

    fn word(&self, len: u64, index: usize) -> u64 {
        match self {
            Page::Clear => 0,
            Page::Full => full_word(len, index),
            Page::Bits { words, .. } => words[index],
        }
    }

    /// Turns bits `from..to` of this page (which has `len` bits) to `value`; gives the number that changed.
    fn update(&mut self, len: u64, from: u64, to: u64, value: bool) -> u64 {
        let before = self.set_bits(len);
        if (value && before == len) || (!value && before == 0) {
            return 0;
        }
        if from == 0 && to == len {
            *self = if value { Page::Full } else { Page::Clear };
            return if value { len - before } else { before };
        }
        let mut words = self.take_words(len);
        let mut changed = 0;
        for index in from / 64..to.div_ceil(64) {
            let base = index * 64;
            let mask = word_mask(from.max(base) - base, to.min(base + 64) - base);
            let old = words[index as usize];
            let new = if value { old | mask } else { old & !mask };
            changed += u64::from((old ^ new).count_ones());
            words[index as usize] = new;
        }
        let set = if value { before + changed } else { before - changed };
        self.put_words(len, set, words);
        changed
    }

    /// Replaces one word; gives the set bits before and after.
    fn replace_word(&mut self, len: u64, index: usize, value: u64) -> (u64, u64) {
        let before = self.set_bits(len);
        let mut words = self.take_words(len);
        let old = words[index];
        words[index] = value;
        let set = before + u64::from(value.count_ones()) - u64::from(old.count_ones());
        self.put_words(len, set, words);
        (before, set)
    }

    fn take_words(&mut self, len: u64) -> Box<[u64; PAGE_WORDS]> {
        match std::mem::replace(self, Page::Clear) {
            Page::Clear => Box::new([0; PAGE_WORDS]),
            Page::Full => {
                let mut words = Box::new([0; PAGE_WORDS]);
                for (index, word) in words.iter_mut().enumerate() {
                    *word = full_word(len, index);
                }
                words
            }
            Page::Bits { words, .. } => words,
        }
    }

    fn put_words(&mut self, len: u64, set: u64, words: Box<[u64; PAGE_WORDS]>) {
        *self = match u16::try_from(set) {
            Ok(0) => Page::Clear,
            Ok(set) if u64::from(set) < len => Page::Bits { set, words },
            _ => Page::Full,
        };
    }

    /// First bit at or after `from` that has `value`.
    fn next(&self, len: u64, from: u64, value: bool) -> Option<u64> {
        let words = match self {
            Page::Clear => return (!value).then_some(from),
            Page::Full => return value.then_some(from),
            Page::Bits { words, .. } => words,
        };
        let flip = if value { 0 } else { u64::MAX };
        let first = (from / 64) as usize;
        for (index, word) in words.iter().enumerate().skip(first) {
            let mut word = word ^ flip;
            if index == first {
                word &= u64::MAX << (from % 64);
            }
            if word != 0 {
                let bit = index as u64 * 64 + u64::from(word.trailing_zeros());
                return (bit < len).then_some(bit);
            }
        }
        None
    }
}

/// Number of bits that exist in page `page` of a chunk of `len` bits.
fn page_len(len: u64, page: usize) -> u64 {
    len.saturating_sub(page as u64 * PAGE_BITS).min(PAGE_BITS)
}

impl Chunk {
    fn set_bits(&self, len: u64) -> u64 {
        match self {
            Chunk::Clear => 0,
            Chunk::Full => len,
            Chunk::Pages(pages) => u64::from(pages.set),
        }
    }

    fn page(&self, page: usize) -> &Page {
        match self {
            Chunk::Clear => &Page::Clear,
            Chunk::Full => &Page::Full,
            Chunk::Pages(pages) => &pages.pages[page],
        }
    }

    /// Runs `change` on the pages, making them exist for as long as needed; `change` gives the new count.
    fn with_pages(&mut self, len: u64, change: impl FnOnce(&mut Pages)) {
        if !matches!(self, Chunk::Pages(_)) {
            let full = matches!(self, Chunk::Full);
            let pages = std::array::from_fn(|page| match page_len(len, page) {
                0 => Page::Clear,
                _ if full => Page::Full,
                _ => Page::Clear,
            });
            let set = if full { len as u32 } else { 0 };
            *self = Chunk::Pages(Box::new(Pages { set, pages }));
        }
        let Chunk::Pages(pages) = self else { unreachable!("made above") };
        change(pages);
        if pages.set == 0 {
            *self = Chunk::Clear;
        } else if u64::from(pages.set) == len {
            *self = Chunk::Full;
        }
    }

    /// Turns bits `from..to` to `value`. `on_change(first, last)` names the parts that changed, page by page.
    fn update(&mut self, len: u64, (from, to): (u64, u64), value: bool, on_change: &mut impl FnMut(u64, u64)) -> u64 {
        let before = self.set_bits(len);
        if (value && before == len) || (!value && before == 0) {
            return 0;
        }
        if from == 0 && to == len && !matches!(self, Chunk::Pages(_)) {
            *self = if value { Chunk::Full } else { Chunk::Clear };
            on_change(0, len - 1);
            return len;
        }
        let mut changed = 0;
        self.with_pages(len, |pages| {
            for page in from / PAGE_BITS..to.div_ceil(PAGE_BITS) {
                let base = page * PAGE_BITS;
                let here = page_len(len, page as usize);
                let (first, end) = (from.max(base) - base, (to - base).min(here));
                let count = pages.pages[page as usize].update(here, first, end, value);
                if count > 0 {
                    on_change(base + first, base + end - 1);
                    changed += count;
                }
            }
            pages.set = if value { pages.set + changed as u32 } else { pages.set - changed as u32 };
        });
        changed
    }
}

/// A fixed number of bits, all clear at first.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub(super) struct SparseBits {
    len: u64,
    set: u64,
    chunks: Vec<Chunk>,
}

impl SparseBits {
    pub(super) fn new(len: u64) -> Self {
        let chunks = vec![Chunk::Clear; len.div_ceil(CHUNK_BITS) as usize];
        SparseBits { len, set: 0, chunks }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn count(&self) -> u64 {
        self.set
    }

    fn chunk_len(&self, chunk: usize) -> u64 {
        (self.len - chunk as u64 * CHUNK_BITS).min(CHUNK_BITS)
    }

    /// Turns bits `first..=last` to `value`; gives the number that changed. `on_change(first, last)` names the
    /// changed parts with at most page granularity.
    pub(super) fn update(&mut self, first: u64, last: u64, value: bool, mut on_change: impl FnMut(u64, u64)) -> u64 {
        assert!(first <= last && last < self.len, "bits {first}..={last} of {}", self.len);
        let mut changed = 0;
        for chunk in first / CHUNK_BITS..=last / CHUNK_BITS {
            let base = chunk * CHUNK_BITS;
            let len = self.chunk_len(chunk as usize);
            let range = (first.max(base) - base, (last + 1 - base).min(len));
            changed += self.chunks[chunk as usize].update(len, range, value, &mut |a, b| {
                on_change(base + a, base + b);
            });
        }
        self.set = if value { self.set + changed } else { self.set - changed };
        changed
    }

    pub(super) fn test(&self, bit: u64) -> bool {
        assert!(bit < self.len, "bit {bit} of {}", self.len);
        self.word(bit / 64) >> (bit % 64) & 1 == 1
    }

    /// First bit at or after `from` that has `value`.
    pub(super) fn next(&self, from: u64, value: bool) -> Option<u64> {
        let mut at = from;
        while at < self.len {
            let index = (at / CHUNK_BITS) as usize;
            let (base, len) = (index as u64 * CHUNK_BITS, self.chunk_len(index));
            match &self.chunks[index] {
                Chunk::Clear if !value => return Some(at),
                Chunk::Full if value => return Some(at),
                Chunk::Clear | Chunk::Full => {}
                Chunk::Pages(pages) => {
                    while at < base + len {
                        let page = ((at - base) / PAGE_BITS) as usize;
                        let page_base = base + page as u64 * PAGE_BITS;
                        let here = page_len(len, page);
                        if let Some(bit) = pages.pages[page].next(here, at - page_base, value) {
                            return Some(page_base + bit);
                        }
                        at = page_base + here;
                    }
                }
            }
            at = base + len;
        }
        None
    }

    /// Word `index` (bits `64 * index..`); 0 beyond the end.
    pub(super) fn word(&self, index: u64) -> u64 {
        let bit = index * 64;
        if bit >= self.len {
            return 0;
        }
        let chunk = (bit / CHUNK_BITS) as usize;
        let page = (bit % CHUNK_BITS / PAGE_BITS) as usize;
        let len = page_len(self.chunk_len(chunk), page);
        self.chunks[chunk].page(page).word(len, (bit % PAGE_BITS / 64) as usize)
    }

    /// Replaces word `index`; bits that do not exist are ignored. Gives (newly set, newly cleared).
    pub(super) fn replace_word(&mut self, index: u64, value: u64) -> (u64, u64) {
        let bit = index * 64;
        if bit >= self.len {
            return (0, 0);
        }
        let value = value & full_word(self.len - bit, 0);
        let old = self.word(index);
        if old == value {
            return (0, 0);
        }
        let chunk = (bit / CHUNK_BITS) as usize;
        let page = (bit % CHUNK_BITS / PAGE_BITS) as usize;
        let len = self.chunk_len(chunk);
        self.chunks[chunk].with_pages(len, |pages| {
            let slot = (bit % PAGE_BITS / 64) as usize;
            let (before, after) = pages.pages[page].replace_word(page_len(len, page), slot, value);
            pages.set = pages.set + after as u32 - before as u32;
        });
        let set = u64::from((value & !old).count_ones());
        let cleared = u64::from((old & !value).count_ones());
        self.set = self.set + set - cleared;
        (set, cleared)
    }

    /// Makes this a copy of `other` (of the same length). `on_change(first, last)` names the changed parts.
    pub(super) fn copy_from(&mut self, other: &Self, mut on_change: impl FnMut(u64, u64)) {
        assert_eq!(self.len, other.len, "copy between bitmaps of one volume");
        for (index, (to, from)) in self.chunks.iter_mut().zip(&other.chunks).enumerate() {
            let base = index as u64 * CHUNK_BITS;
            let len = (self.len - base).min(CHUNK_BITS);
            if to == from {
                continue;
            }
            for page in (0..CHUNK_PAGES).filter(|page| to.page(*page) != from.page(*page)) {
                let here = page_len(len, page);
                if here > 0 {
                    let first = base + page as u64 * PAGE_BITS;
                    on_change(first, first + here - 1);
                }
            }
            to.clone_from(from);
        }
        self.set = other.set;
    }
}
