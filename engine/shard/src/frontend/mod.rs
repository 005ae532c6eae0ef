//! Block front ends: what turns somebody's block I/O into requests to a core, on the shard's ring.

mod exports;
mod nbd;
mod ublk;

use zea_core::io::{IoError, Request, Time};

use crate::ResourceId;
use crate::pool::Pool;
use crate::ring::Ring;
use crate::token::{FrontOp, Token};

pub(crate) use exports::{Export, ExportState, Longest};
pub use exports::{ExportDirectory, ExportError};
pub(crate) use nbd::{NbdConnection, Transmission};
pub(crate) use ublk::UblkDevice;

/// What a front end has for its shard.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing now; an operation of the ring or an answer will change that.
    Wait,
    /// A request that takes buffers which are not free.
    NeedBuffer,
    /// A request. Its id is the front end's own, below 2^[`LOCAL_BITS`]; the shard makes it unique.
    Request(ResourceId, Request),
}

/// Bits of a request id that belong to the front end.
pub(crate) const LOCAL_BITS: u32 = 40;

/// A source of requests with operations of its own in the ring. Written requests' buffers and filled ones are its property
/// from [`FrontEnd::next`] to the answer and as long as it wants.
pub(crate) trait FrontEnd: std::fmt::Debug {
    /// An operation that [`FrontEnd::submit`] started ended.
    fn completed(&mut self, pool: &mut Pool, op: FrontOp, result: i32);

    /// The next request, until it says that there is none.
    fn next(&mut self, pool: &mut Pool) -> Step;

    /// A request was carried out.
    fn answer(&mut self, pool: &mut Pool, local: u64, result: Result<(), IoError>);

    /// Starts operations, at the end of a turn: one gathered send, one receive.
    fn submit(&mut self, ring: &mut Ring<Token>, pool: &Pool, slot: u32);

    /// When it is to be closed for making no use of its place.
    fn give_up_at(&self) -> Option<Time>;

    /// Takes no more requests, answers those under way, ends.
    fn close(&mut self);

    /// Which resource it uses, if any yet.
    fn resource(&self) -> Option<ResourceId>;

    /// Tags of a block device, each with an operation in the ring that only the device's end completes; 0 for all else.
    fn device_tags(&self) -> usize {
        0
    }

    /// It ended: nothing of it is in the ring or in a core.
    fn is_over(&self) -> bool;

    /// Gives its buffers back.
    fn bury(self: Box<Self>, pool: &mut Pool);
}
