//! Making sockets, and their options (`wire-protocol.md` section 2.3).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, sockopt};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use zea_wire::Stream;

use crate::address::{PathConfig, PathOptions};
use crate::initial;
use crate::limits;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(23);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(23);
const KEEPALIVE_COUNT: u32 = 9;

/// A nonblocking, close-on-exec TCP socket with its buffers sized: that has to be before connect and listen,
/// because the window scale is announced there.
fn new_socket(addr: &SocketAddr, options: &PathOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(*addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    set_buffers(&socket, options)?;
    Ok(socket)
}

/// Sizes the buffers, past the system's limit where this process may do that.
fn set_buffers(socket: &Socket, options: &PathOptions) -> io::Result<()> {
    let size = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
    if options.sndbuf_bytes != 0 {
        let bytes = size(options.sndbuf_bytes);
        sockopt::set_socket_send_buffer_size_force(socket, bytes)
            .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes))?;
    }
    if options.rcvbuf_bytes != 0 {
        let bytes = size(options.rcvbuf_bytes);
        sockopt::set_socket_recv_buffer_size_force(socket, bytes)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes))?;
    }
    Ok(())
}

/// A listening socket.
pub(crate) fn listen(addr: &SocketAddr, options: &PathOptions) -> io::Result<Socket> {
    let socket = new_socket(addr, options)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&(*addr).into())?;
    socket.listen(limits::BACKLOG)?;
    Ok(socket)
}

/// Begins to connect from the own address, any port, to the peer's.
pub(crate) fn begin_connect(path: &PathConfig) -> io::Result<Socket> {
    let socket = new_socket(&path.peer, &path.options)?;
    socket.set_tcp_nodelay(true)?;
    let mut source = path.own;
    source.set_port(0);
    socket.bind(&source.into())?;
    match socket.connect(&path.peer.into()) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(e),
        _ => Ok(socket),
    }
}

/// Completes a connect whose socket became writable. Errors: why it failed.
pub(crate) fn finish_connect(socket: &Socket, options: &PathOptions) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // Connecting to a port of the own host where nobody listens can meet itself.
    if socket.local_addr()? == socket.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // Not before: it would cut the attempt short as well.
    set_user_timeout(socket, options)
}

/// Options of a socket that was just accepted.
pub(crate) fn prepare_accepted(socket: &Socket, options: &PathOptions) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    set_buffers(socket, options)?;
    set_user_timeout(socket, options)
}

fn set_user_timeout(socket: &Socket, options: &PathOptions) -> io::Result<()> {
    let timeout = Duration::from_millis(options.timeout_ms.into());
    socket.set_tcp_user_timeout(Some(timeout))
}

/// Options that depend on the role; the control stream has pings instead of keepalive.
pub(crate) fn set_role(socket: &Socket, stream: Stream) -> io::Result<()> {
    match stream {
        Stream::Data => socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEPALIVE_IDLE)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(KEEPALIVE_COUNT),
        ),
        Stream::Control => Ok(()),
    }
}

/// Sends the initial packet on a fresh socket, whose buffer has room for it.
pub(crate) fn send_initial(socket: &Socket, stream: Stream) -> io::Result<()> {
    let sent = rustix::net::send(socket, &initial::encode(stream), SendFlags::NOSIGNAL)?;
    if sent == initial::LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Whether a connected socket is still ESTABLISHED: no reset, and no end of stream announced, even one behind
/// bytes that were not read yet.
pub(crate) fn is_alive(socket: &Socket) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::thread;

    use super::*;

    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0.into(), other)
    }

    fn dies(socket: &Socket) -> bool {
        (0..1_000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            !is_alive(socket)
        })
    }

    #[test]
    fn tcp_alive_sees_an_end_behind_unread_bytes_and_a_reset() {
        let (socket, mut other) = pair();
        other.write_all(b"unread").unwrap();
        assert!(is_alive(&socket));
        other.shutdown(Shutdown::Write).unwrap();
        assert!(dies(&socket));

        let (socket, other) = pair();
        Socket::from(other).set_linger(Some(Duration::ZERO)).unwrap();
        assert!(dies(&socket));
    }

    #[test]
    fn tcp_options_are_set() {
        let options =
            PathOptions { sndbuf_bytes: 64 << 10, rcvbuf_bytes: 96 << 10, timeout_ms: 4_321, ..PathOptions::default() };
        let (socket, _other) = pair();
        prepare_accepted(&socket, &options).unwrap();
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.nonblocking().unwrap());
        // The kernel doubles what is asked for, to have room for its own records.
        assert_eq!(socket.send_buffer_size().unwrap(), 128 << 10);
        assert_eq!(socket.recv_buffer_size().unwrap(), 192 << 10);
        let timeout = socket.tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_millis(4_321)));
        set_role(&socket, Stream::Control).unwrap();
        assert!(!socket.keepalive().unwrap());
        set_role(&socket, Stream::Data).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_COUNT);
    }
}
