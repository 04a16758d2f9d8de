//! RoCEv2 in this process, on an ordinary UDP socket.
//!
//! Bytes go up: `wire` and `icrc` read packets, `requester` and `responder` know the rules of reliable connections,
//! `engine` holds what a device holds. None of them has a socket, a thread or a clock. `port_udp` alone has them, and
//! `device` is what the public types call.

pub(crate) mod device;
mod driver;
mod port_udp;

mod completions;
mod connection;
mod counters;
pub(crate) mod engine;
mod handles;
mod icrc;
mod psn;
mod regions;
mod requester;
mod responder;
mod timers;
mod wire;

#[cfg(test)]
mod port_sim;
#[cfg(test)]
mod requester_tests;
#[cfg(test)]
mod responder_tests;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod test_peer;
