//! The connector's thread: turns readiness, time and commands into inputs of the establishment machines, and
//! their outputs into system calls.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use socket2::Socket;

use crate::address::PathConfig;
use crate::connector::{AttemptError, Event, InitialError, PeerKey};
use crate::establish::{Establish, Input, Output, Pair, Rules, SocketId};
use crate::limits;
use crate::listener::{Accepted, Listeners};
use crate::pending::{Introduction, Pending};
use crate::poller::{Interest, Poller};
use crate::socket;

/// What the handle asks for. The handle has checked it.
#[derive(Debug)]
pub(crate) enum Command {
    SetPeer(PeerKey, PathConfig),
    RemovePeer(PeerKey),
    Connect(PeerKey),
    Disconnect(PeerKey),
}

struct Peer {
    path: PathConfig,
    machine: Establish,
    /// The socket of the outgoing attempt.
    connecting: Option<u64>,
    reported_ms: Option<u64>,
}

/// A socket that connects or fills a role.
struct Entry {
    key: PeerKey,
    socket: Socket,
    connecting: bool,
}

/// All that the thread owns.
pub(crate) struct Reactor {
    poller: Poller,
    wake: Arc<OwnedFd>,
    wake_token: u64,
    commands: Receiver<Command>,
    stop: Arc<AtomicBool>,
    on_event: Box<dyn Fn(Event) + Send>,
    started: Instant,
    random: u64,
    peers: BTreeMap<PeerKey, Peer>,
    listeners: Listeners,
    pending: Pending,
    sockets: BTreeMap<u64, Entry>,
    inputs: VecDeque<(PeerKey, Input)>,
}

impl Reactor {
    pub(crate) fn new(
        seed: u64,
        commands: Receiver<Command>,
        stop: Arc<AtomicBool>,
        wake: Arc<OwnedFd>,
        on_event: Box<dyn Fn(Event) + Send>,
    ) -> io::Result<Reactor> {
        let mut poller = Poller::new()?;
        let wake_token = poller.add(&*wake, Interest::Read)?;
        Ok(Reactor {
            poller,
            wake,
            wake_token,
            commands,
            stop,
            on_event,
            started: Instant::now(),
            random: seed,
            peers: BTreeMap::new(),
            listeners: Listeners::default(),
            pending: Pending::default(),
            sockets: BTreeMap::new(),
            inputs: VecDeque::new(),
        })
    }

    /// Runs until the handle says stop.
    pub(crate) fn run(&mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let now_ms = self.now_ms();
            let timeout_ms = self.deadline_ms().map(|at| at.saturating_sub(now_ms));
            let ready = self.poller.wait(timeout_ms);
            // Commands first: who asked to connect before a socket came gets it.
            self.commands();
            for token in ready {
                self.ready(token);
            }
            self.timers();
        }
    }

    /// Milliseconds since the start, rounded down: a wait for a deadline never ends before it.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).expect("not in this universe")
    }

    fn deadline_ms(&self) -> Option<u64> {
        let peers = self.peers.values().filter_map(|p| p.machine.deadline_ms());
        peers.chain(self.listeners.deadline_ms()).chain(self.pending.deadline_ms()).min()
    }

    /// A random number (splitmix64); it only has to differ between two nodes.
    fn draw(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    fn commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::SetPeer(key, path) => self.set_peer(key, path),
                Command::RemovePeer(key) => {
                    self.remove_peer(key);
                }
                Command::Connect(key) => self.input(key, Input::Start),
                Command::Disconnect(key) => {
                    self.pending.close_peer(key);
                    self.input(key, Input::Stop);
                }
            }
        }
    }

    fn set_peer(&mut self, key: PeerKey, path: PathConfig) {
        if self.peers.get(&key).is_some_and(|peer| peer.path == path) {
            return;
        }
        let was_wanted = self.remove_peer(key);
        let peer = Peer {
            path,
            machine: Establish::new(Rules {
                connect_int_ms: path.options.connect_int_ms.into(),
                connect_timeout_ms: path.options.connect_timeout_ms.into(),
                check_ms: path.options.check_ms(),
                first_outgoing: path.first_outgoing(),
            }),
            connecting: None,
            reported_ms: None,
        };
        self.peers.insert(key, peer);
        self.listeners.add(key, &path);
        self.service_listeners();
        if was_wanted {
            self.input(key, Input::Start);
        }
    }

    /// Returns whether a pair was wanted.
    fn remove_peer(&mut self, key: PeerKey) -> bool {
        let was_wanted = self.peers.get(&key).is_some_and(|p| p.machine.is_wanted());
        self.pending.close_peer(key);
        self.input(key, Input::Stop);
        if let Some(peer) = self.peers.remove(&key) {
            self.listeners.remove(&peer.path);
        }
        was_wanted
    }

    fn service_listeners(&mut self) {
        let now_ms = self.now_ms();
        for event in self.listeners.service(now_ms, &mut self.poller) {
            (self.on_event)(event);
        }
    }

    fn timers(&mut self) {
        let now_ms = self.now_ms();
        self.service_listeners();
        for key in self.pending.expire(now_ms) {
            self.report(key, AttemptError::Initial(InitialError::Timeout));
        }
        let is_due = |peer: &Peer| peer.machine.deadline_ms().is_some_and(|at| at <= now_ms);
        let due = self.peers.iter().filter(|(_, peer)| is_due(peer));
        let due: Vec<PeerKey> = due.map(|(key, _)| *key).collect();
        for key in due {
            self.check(key);
            self.input(key, Input::Timer);
        }
    }

    /// Finds out which sockets of a peer died since the last look.
    fn check(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        for SocketId(token) in peer.machine.held() {
            let entry = self.sockets.get(&token).expect("held sockets are here");
            if !socket::is_alive(&entry.socket) {
                self.lost(key, token);
            }
        }
    }

    fn ready(&mut self, token: u64) {
        if token == self.wake_token {
            // The commands were taken, and only whether there were some is counted.
            let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        } else if self.listeners.has(token) {
            self.accept(token);
        } else if let Some(entry) = self.sockets.get(&token) {
            let key = entry.key;
            if entry.connecting {
                self.connect_ended(key, token);
            } else {
                self.lost(key, token);
            }
        } else {
            self.introduce(token);
        }
    }

    fn accept(&mut self, token: u64) {
        let now_ms = self.now_ms();
        for _ in 0..limits::BACKLOG {
            let (accepted, report) = self.listeners.accept(token, now_ms, &self.poller);
            if let Some(event) = report {
                (self.on_event)(event);
            }
            match accepted {
                Accepted::Nothing => return,
                Accepted::Stranger => {}
                Accepted::Peer(key, socket) => self.let_in(key, socket, now_ms),
            }
        }
    }

    /// Lets an accepted socket wait for its initial packet, or closes it.
    fn let_in(&mut self, key: PeerKey, socket: Socket, now_ms: u64) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        if !peer.machine.is_wanted() || !self.pending.has_room(key) {
            return;
        }
        let options = &peer.path.options;
        let token = socket::prepare_accepted(&socket, options).and_then(|()| self.poller.add(&socket, Interest::Read));
        if let Ok(token) = token {
            let until_ms = now_ms + options.initial_timeout_ms();
            self.pending.insert(token, key, socket, until_ms);
        }
    }

    fn introduce(&mut self, token: u64) {
        match self.pending.read(token) {
            Introduction::NotHere | Introduction::Incomplete => {}
            Introduction::Refused(key, error) => self.report(key, AttemptError::Initial(error)),
            Introduction::Done(key, socket, stream) => {
                let prepared =
                    socket::set_role(&socket, stream).and_then(|()| self.poller.change(&socket, token, Interest::End));
                if prepared.is_err() {
                    return self.report(key, AttemptError::Lost);
                }
                let entry = Entry { key, socket, connecting: false };
                self.sockets.insert(token, entry);
                // So that it does not seem to cross a socket that is dead.
                self.check(key);
                self.input(key, Input::Accepted(SocketId(token), stream));
            }
        }
    }

    fn connect_ended(&mut self, key: PeerKey, token: u64) {
        let (Some(peer), Some(entry)) = (self.peers.get_mut(&key), self.sockets.get_mut(&token)) else {
            unreachable!("an attempt belongs to a peer");
        };
        peer.connecting = None;
        entry.connecting = false;
        let result = socket::finish_connect(&entry.socket, &peer.path.options)
            .and_then(|()| self.poller.change(&entry.socket, token, Interest::End));
        match result {
            Ok(()) => self.input(key, Input::Connected(SocketId(token))),
            Err(error) => {
                let peer = peer.path.peer;
                self.sockets.remove(&token);
                self.report(key, AttemptError::Connect { peer, error });
                self.input(key, Input::ConnectFailed);
            }
        }
    }

    fn lost(&mut self, key: PeerKey, token: u64) {
        self.sockets.remove(&token);
        self.report(key, AttemptError::Lost);
        self.input(key, Input::Lost(SocketId(token)));
    }

    /// Feeds a machine, and it or others with what follows from that.
    fn input(&mut self, key: PeerKey, input: Input) {
        self.inputs.push_back((key, input));
        while let Some((key, input)) = self.inputs.pop_front() {
            let (now_ms, random) = (self.now_ms(), self.draw());
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            let mut out = Vec::new();
            peer.machine.handle(now_ms, random, input, &mut out);
            if input == Input::Timer && out.contains(&Output::CancelConnect) {
                let peer = peer.path.peer;
                self.report(key, AttemptError::Timeout { peer });
            }
            for output in out {
                self.output(key, output);
            }
        }
    }

    fn output(&mut self, key: PeerKey, output: Output) {
        match output {
            Output::Connect => self.connect(key),
            Output::CancelConnect => {
                let connecting = self.peers.get_mut(&key).and_then(|p| p.connecting.take());
                if let Some(token) = connecting {
                    self.sockets.remove(&token);
                }
            }
            Output::SendInitial(SocketId(token), stream) => {
                let entry = self.sockets.get(&token).expect("the machine holds it");
                let sent =
                    socket::set_role(&entry.socket, stream).and_then(|()| socket::send_initial(&entry.socket, stream));
                if sent.is_err() {
                    self.sockets.remove(&token);
                    self.report(key, AttemptError::Lost);
                    self.inputs.push_back((key, Input::Lost(SocketId(token))));
                }
            }
            Output::Close(SocketId(token)) => {
                self.sockets.remove(&token);
            }
            Output::Confirmed(pair) => self.hand_over(key, pair),
        }
    }

    fn connect(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let begun = socket::begin_connect(&peer.path).and_then(|socket| {
            let token = self.poller.add(&socket, Interest::Write)?;
            Ok((socket, token))
        });
        match begun {
            Ok((socket, token)) => {
                peer.connecting = Some(token);
                let entry = Entry { key, socket, connecting: true };
                self.sockets.insert(token, entry);
            }
            Err(error) => {
                let peer = peer.path.peer;
                self.report(key, AttemptError::Connect { peer, error });
                self.inputs.push_back((key, Input::ConnectFailed));
            }
        }
    }

    fn hand_over(&mut self, key: PeerKey, pair: Pair) {
        self.pending.close_peer(key);
        let data = self.release(pair.data);
        let control = self.release(pair.control);
        (self.on_event)(Event::Established { key, data, control, resolve_conflicts: pair.resolve_conflicts });
    }

    fn release(&mut self, SocketId(token): SocketId) -> OwnedFd {
        let entry = self.sockets.remove(&token).expect("the machine held it");
        self.poller.remove(&entry.socket);
        entry.socket.into()
    }

    fn report(&mut self, key: PeerKey, error: AttemptError) {
        let now_ms = self.now_ms();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let is_early = |last: u64| now_ms < last + limits::ATTEMPT_REPORT_MS;
        if !peer.reported_ms.is_some_and(is_early) {
            peer.reported_ms = Some(now_ms);
            (self.on_event)(Event::Attempt { key, error });
        }
    }
}
