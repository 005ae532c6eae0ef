//! Tests of the wire protocol from outside: round trips, hostile bytes, recordings of the kernel.

mod bitmaps;
mod captures;
mod hostile;
mod round_trip;
mod strategy;
