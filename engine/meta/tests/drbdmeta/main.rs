//! Zea's meta data against DRBD's own tool: what one writes, the other must read.

mod activity_log;
mod dump;
mod image;
mod reading;
mod tool;
mod writing;
