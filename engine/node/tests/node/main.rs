//! Whole nodes: real daemons, real disks and sockets, one machine.

mod bad_clients;
mod bad_disk;
mod bad_wire;
mod clients;
mod common;
mod crashes;
mod quorum;
mod recordings;
mod resync;
mod three_daemons;
mod verify;
