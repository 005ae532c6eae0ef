//! Two sides establish a connection over a simulated network: two of our machines, and ours against a model of
//! the kernel's loop. Sockets are lost, latencies differ, both start at any time; they must agree in the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// Either kind of side; both speak the machine's inputs and outputs.
trait Side {
    fn handle(&mut self, now_ms: u64, random: u32, input: Input, out: &mut Vec<Output>);
    fn deadline_ms(&self) -> Option<u64>;
    /// Whether a connect to a side that wants no pair is refused, rather than accepted and closed.
    fn refuses(&self) -> bool;
}

impl Side for Establish {
    fn handle(&mut self, now_ms: u64, random: u32, input: Input, out: &mut Vec<Output>) {
        Establish::handle(self, now_ms, random, input, out);
    }

    fn deadline_ms(&self) -> Option<u64> {
        Establish::deadline_ms(self)
    }

    fn refuses(&self) -> bool {
        false
    }
}

/// The kernel's sequential loop as `wire-protocol.md` sections 2.1 and 2.2 tell it: connect, wait for an incoming
/// socket, sleep for the check; dead sockets are noticed only at certain points.
struct Kernel {
    connect_int_ms: u64,
    check_ms: u64,
    first: Stream,
    step: Step,
    data: Option<Held>,
    control: Option<Held>,
    dead: BTreeSet<SocketId>,
    backlog: VecDeque<(SocketId, Stream)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Idle,
    Connecting { until_ms: u64 },
    Waiting { until_ms: u64 },
    Sleeping { until_ms: u64, then_connect: bool },
}

impl Kernel {
    fn new(first: Stream) -> Kernel {
        Kernel {
            connect_int_ms: 10_000,
            check_ms: 500,
            first,
            step: Step::Idle,
            data: None,
            control: None,
            dead: BTreeSet::new(),
            backlog: VecDeque::new(),
        }
    }

    fn connect(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        self.step = Step::Connecting { until_ms: now_ms + self.connect_int_ms };
        out.push(Output::Connect);
    }

    fn both(&self) -> bool {
        self.data.is_some() && self.control.is_some()
    }

    fn drop_dead(&mut self, out: &mut Vec<Output>) {
        for slot in [&mut self.data, &mut self.control] {
            if slot.is_some_and(|held| self.dead.contains(&held.id)) {
                out.extend(slot.take().map(|held| Output::Close(held.id)));
            }
        }
    }

    fn after_connect(&mut self, now_ms: u64, random: u32, out: &mut Vec<Output>) {
        if self.both() {
            self.step = Step::Sleeping { until_ms: now_ms + self.check_ms, then_connect: false };
        } else {
            self.wait(now_ms, random, out);
        }
    }

    fn wait(&mut self, now_ms: u64, random: u32, out: &mut Vec<Output>) {
        self.step = Step::Waiting { until_ms: now_ms + jitter(self.connect_int_ms, random) };
        let Some((id, stream)) = self.backlog.pop_front() else {
            return;
        };
        self.drop_dead(out);
        let slot = match stream {
            Stream::Data => &mut self.data,
            Stream::Control => &mut self.control,
        };
        if let Some(old) = slot.replace(Held { id, accepted: true }) {
            out.push(Output::Close(old.id));
            if coin(random) {
                return self.wait(now_ms, random.rotate_left(1), out);
            }
        }
        self.end_of_round(now_ms, out);
    }

    fn end_of_round(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.both() {
            self.step = Step::Sleeping { until_ms: now_ms + self.check_ms, then_connect: true };
        } else {
            self.connect(now_ms, out);
        }
    }

    fn connected(&mut self, now_ms: u64, random: u32, id: SocketId, out: &mut Vec<Output>) {
        let held = Some(Held { id, accepted: false });
        let stream = match (self.data, self.control) {
            (None, None) => self.first,
            (None, Some(_)) => Stream::Data,
            (Some(_), _) => Stream::Control,
        };
        match stream {
            Stream::Data => self.data = held,
            Stream::Control => self.control = held,
        }
        out.push(Output::SendInitial(id, stream));
        self.after_connect(now_ms, random, out);
    }

    fn timer(&mut self, now_ms: u64, random: u32, out: &mut Vec<Output>) {
        match self.step {
            Step::Idle => {}
            Step::Connecting { .. } => {
                out.push(Output::CancelConnect);
                self.after_connect(now_ms, random, out);
            }
            Step::Waiting { .. } => self.end_of_round(now_ms, out),
            Step::Sleeping { then_connect, .. } => {
                self.drop_dead(out);
                if let (Some(data), Some(control)) = (self.data, self.control) {
                    (self.data, self.control) = (None, None);
                    self.step = Step::Idle;
                    out.extend(self.backlog.drain(..).map(|(id, _)| Output::Close(id)));
                    out.push(Output::Confirmed(Pair {
                        data: data.id,
                        control: control.id,
                        resolve_conflicts: control.accepted,
                    }));
                } else if then_connect {
                    self.connect(now_ms, out);
                } else {
                    self.wait(now_ms, random, out);
                }
            }
        }
    }
}

impl Side for Kernel {
    fn handle(&mut self, now_ms: u64, random: u32, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Start => self.connect(now_ms, out),
            Input::Stop => unreachable!("never stopped here"),
            Input::Connected(id) => self.connected(now_ms, random, id, out),
            Input::ConnectFailed => self.after_connect(now_ms, random, out),
            Input::Accepted(id, _) if self.step == Step::Idle => out.push(Output::Close(id)),
            Input::Accepted(id, stream) => {
                self.backlog.push_back((id, stream));
                if let Step::Waiting { .. } = self.step {
                    self.wait(now_ms, random, out);
                }
            }
            Input::Lost(id) => {
                self.dead.insert(id);
            }
            Input::Timer => self.timer(now_ms, random, out),
        }
    }

    fn deadline_ms(&self) -> Option<u64> {
        match self.step {
            Step::Idle => None,
            Step::Connecting { until_ms } | Step::Waiting { until_ms } | Step::Sleeping { until_ms, .. } => {
                Some(until_ms)
            }
        }
    }

    fn refuses(&self) -> bool {
        true
    }
}

/// One TCP connection. Its number is its id on both sides.
struct Connection {
    from: usize,
    /// Added to the latency, so that connections overtake each other.
    slower_ms: u64,
    /// The side has it (as a value of `Connected` or `Accepted`) and has neither closed nor lost it.
    has: [bool; 2],
    cancelled: bool,
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Start(usize),
    Syn(usize),
    SynAck(usize),
    Refused(usize),
    Initial(usize, Stream),
    Fin { connection: usize, to: usize },
    Kill(usize),
}

/// What a run is made of.
#[derive(Debug, Clone)]
struct Scenario {
    seed: u64,
    start_ms: [u64; 2],
    latency_ms: [u64; 2],
    reorder_ms: u64,
    /// When a socket dies, and which.
    kills: Vec<(u64, usize)>,
    /// How long a side needs to try again after its established pair broke.
    restart_ms: [u64; 2],
}

struct World {
    scenario: Scenario,
    sides: [Box<dyn Side>; 2],
    wanted: [bool; 2],
    now_ms: u64,
    random: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Happens>,
    connections: Vec<Connection>,
    outgoing: [Option<usize>; 2],
    pair: [Option<Pair>; 2],
}

impl World {
    fn new(scenario: Scenario, sides: [Box<dyn Side>; 2]) -> World {
        let mut world = World {
            random: scenario.seed,
            scenario: scenario.clone(),
            sides,
            wanted: [false; 2],
            now_ms: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            connections: Vec::new(),
            outgoing: [None; 2],
            pair: [None; 2],
        };
        for side in 0..2 {
            world.later(scenario.start_ms[side], Happens::Start(side));
        }
        for (at_ms, which) in scenario.kills {
            world.later(at_ms, Happens::Kill(which));
        }
        world
    }

    fn draw(&mut self) -> u32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 32) as u32
    }

    fn later(&mut self, delay_ms: u64, happens: Happens) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + delay_ms, self.sequence), happens);
    }

    /// Sends along a connection, from a side to the other.
    fn send(&mut self, connection: usize, from: usize, happens: Happens) {
        let delay = self.scenario.latency_ms[from] + self.connections[connection].slower_ms;
        self.later(delay, happens);
    }

    /// Runs until both have the same living pair and nobody will touch it; returns the time.
    fn run(&mut self, limit_ms: u64) -> Option<u64> {
        let last_kill = self.scenario.kills.iter().map(|k| k.0).max().unwrap_or(0);
        // Far more than any run needs; two sides that undo each other's work can do so in no time at all.
        for _ in 0..100_000 {
            if self.now_ms > limit_ms {
                return None;
            }
            if self.now_ms >= last_kill && self.agreed() {
                return Some(self.now_ms);
            }
            let timer = (0..2).filter_map(|s| self.sides[s].deadline_ms().map(|at| (at, s))).min();
            let next = self.queue.first_key_value().map(|(key, _)| key.0);
            match (timer, next) {
                (Some((at, side)), next) if next.is_none_or(|next| at < next) => {
                    self.now_ms = self.now_ms.max(at);
                    self.input(side, Input::Timer);
                }
                (_, Some(_)) => {
                    let ((at, _), happens) = self.queue.pop_first().unwrap();
                    self.now_ms = self.now_ms.max(at);
                    self.happen(happens);
                }
                (_, None) => return None,
            }
        }
        None
    }

    fn agreed(&self) -> bool {
        let [Some(a), Some(b)] = self.pair else {
            return false;
        };
        let lives = |id: SocketId| self.connections[id.0 as usize].has == [true; 2];
        let same = (a.data, a.control) == (b.data, b.control) && lives(a.data) && lives(a.control);
        if same {
            assert_ne!(a.resolve_conflicts, b.resolve_conflicts, "one tie-break winner");
            let acceptor = 1 - self.connections[a.control.0 as usize].from;
            assert!(self.pair[acceptor].unwrap().resolve_conflicts);
        }
        same
    }

    fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Start(side) => {
                self.wanted[side] = true;
                self.input(side, Input::Start);
            }
            Happens::Syn(connection) => {
                let to = 1 - self.connections[connection].from;
                let answer = if !self.wanted[to] && self.sides[to].refuses() {
                    Happens::Refused(connection)
                } else {
                    Happens::SynAck(connection)
                };
                self.send(connection, to, answer);
            }
            Happens::SynAck(connection) | Happens::Refused(connection) => {
                let Connection { from, cancelled, .. } = self.connections[connection];
                if cancelled {
                    return;
                }
                self.outgoing[from] = None;
                if let Happens::Refused(_) = happens {
                    self.input(from, Input::ConnectFailed);
                } else {
                    self.connections[connection].has[from] = true;
                    self.input(from, Input::Connected(SocketId(connection as u64)));
                }
            }
            Happens::Initial(connection, stream) => {
                let to = 1 - self.connections[connection].from;
                self.connections[connection].has[to] = true;
                self.input(to, Input::Accepted(SocketId(connection as u64), stream));
            }
            Happens::Fin { connection, to } => self.lose(connection, to),
            Happens::Kill(which) => {
                let living: Vec<usize> =
                    (0..self.connections.len()).filter(|c| self.connections[*c].has == [true; 2]).collect();
                if let Some(connection) = living.get(which % living.len().max(1)) {
                    for to in 0..2 {
                        self.send(*connection, 1 - to, Happens::Fin { connection: *connection, to });
                    }
                }
            }
        }
    }

    /// A side sees the end of a connection.
    fn lose(&mut self, connection: usize, side: usize) {
        if !self.connections[connection].has[side] {
            return;
        }
        let id = SocketId(connection as u64);
        if self.pair[side].is_some_and(|pair| pair.data == id || pair.control == id) {
            let pair = self.pair[side].take().unwrap();
            self.close(pair.data, side);
            self.close(pair.control, side);
            self.later(self.scenario.restart_ms[side], Happens::Start(side));
        } else {
            // A side that is told keeps its end until it says Close (the kernel's) or forgets it (ours).
            self.connections[connection].has[side] = false;
            self.input(side, Input::Lost(id));
        }
    }

    fn close(&mut self, id: SocketId, side: usize) {
        let connection = id.0 as usize;
        self.connections[connection].has[side] = false;
        self.send(connection, side, Happens::Fin { connection, to: 1 - side });
    }

    fn input(&mut self, side: usize, input: Input) {
        let random = self.draw();
        let mut out = Vec::new();
        self.sides[side].handle(self.now_ms, random, input, &mut out);
        for output in out {
            self.output(side, output);
        }
    }

    fn output(&mut self, side: usize, output: Output) {
        match output {
            Output::Connect => {
                let slower_ms = u64::from(self.draw()) % (self.scenario.reorder_ms + 1);
                let connection = self.connections.len();
                self.connections.push(Connection { from: side, slower_ms, has: [false; 2], cancelled: false });
                assert!(self.outgoing[side].replace(connection).is_none());
                self.send(connection, side, Happens::Syn(connection));
            }
            Output::CancelConnect => {
                let connection = self.outgoing[side].take().unwrap();
                self.connections[connection].cancelled = true;
            }
            Output::SendInitial(id, stream) => {
                let connection = id.0 as usize;
                self.send(connection, side, Happens::Initial(connection, stream));
            }
            Output::Close(id) => self.close(id, side),
            Output::Confirmed(pair) => {
                self.wanted[side] = false;
                assert!(self.pair[side].replace(pair).is_none());
            }
        }
    }
}

fn scenario(latency_ms: u64, kills: usize) -> impl Strategy<Value = Scenario> {
    (
        any::<u64>(),
        [0..3_000u64, 0..3_000],
        [0..=latency_ms, 0..=latency_ms],
        0..=latency_ms / 4,
        proptest::collection::vec((0..8_000u64, 0..64usize), 0..=kills),
        [0..500u64, 0..500],
    )
        .prop_map(|(seed, start_ms, latency_ms, reorder_ms, kills, restart_ms)| Scenario {
            seed,
            start_ms,
            latency_ms,
            reorder_ms,
            kills,
            restart_ms,
        })
}

fn ours(first_outgoing: Stream) -> Box<dyn Side> {
    Box::new(Establish::new(Rules { connect_int_ms: 1_000, connect_timeout_ms: 3_000, check_ms: 100, first_outgoing }))
}

fn kernel(first: Stream) -> Box<dyn Side> {
    Box::new(Kernel::new(first))
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Data), Just(Stream::Control)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// On a quick network nothing is lost to bad luck: the pair stands soon after the later start.
    #[test]
    fn tcp_simulation_two_of_ours_agree_at_once(scenario in scenario(4, 0)) {
        let start = scenario.start_ms[0].max(scenario.start_ms[1]);
        let mut world = World::new(scenario, [ours(Stream::Data), ours(Stream::Control)]);
        let agreed = world.run(60_000);
        prop_assert!(agreed.is_some_and(|at| at <= start + 350), "{agreed:?}");
    }

    /// Slow and lossy: they agree in the end.
    #[test]
    fn tcp_simulation_two_of_ours_agree_after_losses(scenario in scenario(300, 12)) {
        let mut world = World::new(scenario, [ours(Stream::Data), ours(Stream::Control)]);
        prop_assert!(world.run(120_000).is_some());
    }

    /// Even if both believe that they are the greater one (an address that is translated on the way), and do
    /// everything at the same time: every round crosses, and chance alone must break the tie.
    #[test]
    fn tcp_simulation_in_step_does_not_livelock(seed in any::<u64>(), latency_ms in 0..=100u64, first in stream()) {
        let in_step = Scenario {
            seed,
            start_ms: [0; 2],
            latency_ms: [latency_ms; 2],
            reorder_ms: 0,
            kills: Vec::new(),
            restart_ms: [20; 2],
        };
        let mut world = World::new(in_step, [ours(first), ours(first)]);
        prop_assert!(world.run(60_000).is_some());
    }

    /// DRBD 9 compares addresses as we do; 8.4 initiates data first whatever the addresses are.
    #[test]
    fn tcp_simulation_agrees_with_the_kernels_loop(scenario in scenario(50, 8), our in stream(), old in any::<bool>()) {
        let their = match (old, our) {
            (false, Stream::Data) => Stream::Control,
            _ => Stream::Data,
        };
        let mut world = World::new(scenario, [ours(our), kernel(their)]);
        prop_assert!(world.run(900_000).is_some());
    }
}
