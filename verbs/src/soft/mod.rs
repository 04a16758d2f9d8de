//! RoCEv2 in this process, on an ordinary UDP socket or on DPDK.
//!
//! `wire` and `icrc` know bytes, `requester` and `responder` the rules of reliable connections, and `engine` holds what a
//! device holds: none of them has a socket, a thread or a clock. `port` is where datagrams come from and go to: `port_udp`
//! has a socket, `port_dpdk` a port of DPDK's. `driver` has the thread and the clock, and `device` is what the public types call.

pub(crate) mod device;
mod driver;
mod port;
#[cfg(feature = "dpdk")]
pub(crate) mod port_dpdk;
mod port_udp;

mod completions;
mod connection;
#[cfg(test)]
mod count_tests;
mod counters;
pub(crate) mod engine;
mod flight;
mod handles;
mod icrc;
mod out;
mod pace;
mod psn;
mod regions;
mod requester;
mod responder;
mod timers;
mod wire;

#[cfg(test)]
mod congestion_tests;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod guard_tests;
#[cfg(test)]
mod many_tests;
#[cfg(test)]
mod port_sim;
#[cfg(test)]
mod rc_tests;
#[cfg(test)]
mod real_peer_tests;
#[cfg(test)]
mod requester_tests;
#[cfg(test)]
mod responder_rules_tests;
#[cfg(test)]
mod responder_tests;
#[cfg(test)]
mod sim_link;
#[cfg(test)]
mod sim_runs;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod test_peer;
#[cfg(test)]
mod vectors;
