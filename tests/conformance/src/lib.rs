//! Conformance by replay: Zea's core in the place of one node of a recording of kernel DRBD, and the recorded other nodes
//! as its peers.
//!
//! **Purpose.** Shows where Zea says something else on the wire than the kernel does in the same place. Each folder under
//! `recordings` is played once for each of its nodes; a new one is picked up without code. The configuration, the
//! contents of the disks, and what was done comes from the recording's own files.
//!
//! **The rule.** Virtual time is the time of the recording. From one node's point of view a recording is a list of three
//! things, in the order of the frames:
//!
//! * *A packet to the node* is delivered when its time has come, and everything that the node had sent before it on that
//!   link is due by then: the core has been given every earlier packet, command and timer, and all its disk commands have
//!   ended. What the node had sent, and Zea has not, is a difference (late, or missing if it never comes); the packet is
//!   delivered all the same, except for an answer to what Zea never sent. Frames that the bridge saw in the wrong order,
//!   an answer before what it answers, are put in order first.
//! * *A packet from the node* is what Zea is expected to have sent. If it is one of the front end's (P_DATA, P_TRIM,
//!   P_ZEROES, P_DATA_REQUEST) and Zea has not sent it, Zea's front end makes that request here. So the pieces are those
//!   into which the kernel's block layer cut the requests.
//! * *A command* (`commands.txt`) is given at the time at which it was. Writes of `iot` that show as packets are left to
//!   the packets; the others, made while nobody was connected, are made here, with the same contents.
//!
//! What Zea sends is compared with what the node sent, for each link and stream: the same packets in the same order, each
//! field and each sector of payload. It may be earlier than the node was, since it has no reason to wait for a packet that
//! does not concern it.
//!
//! **What may differ** without being called a difference:
//!
//! * Names that a node makes up: UUIDs, transaction ids, block ids. They must stand for the same things throughout, and
//!   what the recorded peer says about them is translated. Challenges, sequence numbers of acks and of flush requests.
//! * Signs of life and hints: P_PING, P_PING_ACK, P_UNPLUG_REMOTE. The harness answers Zea's pings while the peer could.
//! * Epochs as their sender cuts them: P_BARRIER. The harness acks one of Zea's when the recorded peer had confirmed that many
//!   writes. P_BARRIER_ACK is compared.
//! * P_DAGTAG; the dagtag that each write has by it is compared instead. P_PEER_ACK but for the last one of a link: they add up.
//! * An announcement (P_STATE, P_UUIDS110, P_CURRENT_UUID) that says what the last one of its kind on the link said.
//! * The order of answers (acks, replies) and of resync and verify requests among themselves: disks decide it. How many blocks are asked
//!   for at once in a verify.
//! * In P_UUIDS110 what concerns no configured peer: the sender's own entry, a slot that was never used; the order of
//!   former generations; bit 0 of UUIDs that are not current.
//! * Packets that go with a feature which Zea does not offer, in both directions.
//!
//! **Owner thread.** The caller's: no threads, no clock.
//!
//! **Invariants.**
//! * A difference is one of [`tables::DEVIATIONS`], each with its reason, or the run fails.
//! * A run of [`tables::EXPECTED_FAILURES`] that passes fails.
//!
//! **Reference.** `wire-protocol.md`, `handshake-and-states.md`; where a recording contradicts them it is right.

pub mod commands;
pub mod compare;
pub mod contents;
pub mod names;
pub mod node;
pub mod recording;
pub mod replay;
pub mod res;
pub mod tables;
