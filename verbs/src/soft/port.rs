//! Where datagrams come from and go to: a UDP socket, or a port of DPDK's.

use std::sync::Arc;

use super::engine::{Engine, Now};
#[cfg(feature = "dpdk")]
use super::port_dpdk::DpdkPort;
use super::port_udp::{Receiver, Sender, Socket};

/// The half of it that needs the device's lock.
pub(crate) enum Port {
    Udp {
        socket: Arc<Socket>,
        receiver: Receiver,
        sender: Sender,
    },
    #[cfg(feature = "dpdk")]
    Dpdk(Box<DpdkPort>),
}

impl Port {
    /// Takes what has arrived; returns the number of messages. None: the system failed.
    #[inline]
    pub(crate) fn receive(&mut self, engine: &mut Engine, mut now: impl FnMut() -> Now) -> Option<usize> {
        match self {
            Self::Udp { socket, receiver, .. } => {
                receiver.receive(socket, |from, datagram| engine.receive(now(), from, datagram)).ok()
            }
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => Some(port.receive(now, engine)),
        }
    }

    /// Sends what the engine has to send, until there is no more, or no room.
    #[inline]
    pub(crate) fn send(&mut self, engine: &mut Engine, now: Now) {
        match self {
            Self::Udp { socket, sender, .. } => sender.send(socket, |out| engine.poll_transmit(now, out)),
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => port.send(now, engine),
        }
    }

    /// Datagrams are left, for which there was no room.
    #[inline]
    pub(crate) fn waiting(&self) -> bool {
        match self {
            Self::Udp { sender, .. } => sender.waiting(),
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => port.waiting(),
        }
    }

    /// The last look could not tell whether something had arrived.
    #[inline]
    pub(crate) fn is_unknown(&self) -> bool {
        match self {
            Self::Udp { .. } => false,
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => port.is_unknown(),
        }
    }

    /// There is something to take of which no sleep would hear.
    #[inline]
    pub(crate) fn has_arrived(&self) -> bool {
        match self {
            Self::Udp { .. } => false,
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => port.has_arrived(),
        }
    }

    /// Nanoseconds that a sleep may last though nothing wakes it: a port of DPDK's does not say when something arrives.
    pub(crate) fn next_nap(&mut self) -> Option<u64> {
        match self {
            Self::Udp { .. } => None,
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => Some(port.next_nap()),
        }
    }

    /// What was not sent, or not taken, by reason.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Udp { receiver, sender, .. } => vec![
                ("send refused by the system", sender.refused),
                ("cut short by the system", receiver.truncated),
                ("lost on purpose", sender.lost),
            ],
            #[cfg(feature = "dpdk")]
            Self::Dpdk(port) => port.counts().to_vec(),
        }
    }
}
