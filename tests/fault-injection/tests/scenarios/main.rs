//! Explicit scenarios on clusters of real cores. Each runs in virtual time, so minutes of it take milliseconds.

mod after_sb;
mod catalogue;
mod connect;
mod crash;
mod csums;
mod dialect84;
mod dialect84_admin;
mod dialect84_old;
mod dialect84_resize;
mod disk;
mod diskless;
mod generations;
mod hostile;
mod integrity;
mod last_writes;
mod marks;
mod quorum;
mod resync;
mod verify;
mod versions;
mod writes;
