//! Counts the heap allocations of shards whose number begins with a 9; other tests' shards run beside them.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of the first shard that is counted.
pub(crate) const COUNTED: u16 = 90;
const COUNTED_NAME: &[u8] = b"zea-shard-9";

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Allocations of the counted shards until now.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

thread_local! {
    /// Whether this thread is one of them; found out at its first allocation.
    static IS_COUNTED: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Allocates nothing, as an allocator must not.
fn is_counted() -> bool {
    IS_COUNTED.with(|counted| {
        counted.get().unwrap_or_else(|| {
            let mut name = [0_u8; 16];
            // SAFETY: PR_GET_NAME writes at most 16 bytes to where it is told to.
            let result = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
            let is = result == 0 && name.starts_with(COUNTED_NAME);
            // A thread gets its name after its first allocations.
            if name.starts_with(b"zea-shard-") {
                counted.set(Some(is));
            }
            is
        })
    })
}

fn count() {
    if is_counted() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is the system allocator's, under the caller's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's; all memory comes from the system allocator.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}
