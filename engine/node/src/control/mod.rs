//! The control socket: [`server`] in the daemon, [`client`] in `zea`.

pub mod client;
mod line;
pub mod server;

pub use client::{Client, ClientError};
pub use server::Server;
