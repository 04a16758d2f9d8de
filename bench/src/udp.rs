//! UDP ping-pong with busy polling: what one datagram each way costs, and the floor of everything that runs over it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use crate::error::BenchError;
use crate::patience::{Idle, Patience};

/// Largest payload of one IPv4 datagram.
pub(crate) const MAX_DATAGRAM: usize = 65_507;
/// Bytes of the small direction: a sequence number, and the length wanted back.
pub(crate) const HEAD: usize = 16;

/// The asking end.
pub(crate) struct UdpPing {
    socket: UdpSocket,
    sequence: u64,
    buffer: Vec<u8>,
}

impl UdpPing {
    /// Towards an answering end.
    pub(crate) fn connect(peer: SocketAddr) -> Result<Self, BenchError> {
        let socket = bind()?;
        socket.connect(peer).map_err(BenchError::io(format!("reach {peer}")))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0xA5; MAX_DATAGRAM] })
    }

    /// Sends `ask` bytes, polls until `answer` bytes are back. Both from [`HEAD`] to [`MAX_DATAGRAM`].
    pub(crate) fn exchange(&mut self, ask: usize, answer: usize) -> Result<(), BenchError> {
        self.sequence += 1;
        self.buffer[..8].copy_from_slice(&self.sequence.to_be_bytes());
        self.buffer[8..HEAD].copy_from_slice(&(answer as u64).to_be_bytes());
        self.socket.send(&self.buffer[..ask]).map_err(BenchError::io("send a datagram"))?;
        let mut patience = Patience::with("the UDP peer");
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(len) if len == answer && self.buffer[..8] == self.sequence.to_be_bytes() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => patience.spin()?,
                Err(error) => return Err(BenchError::io("receive a datagram")(error)),
            }
        }
    }
}

/// The answering end: says its address through `ready`, then answers for ever.
pub(crate) fn answer(ready: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
    let socket = bind()?;
    ready(socket.local_addr().map_err(BenchError::io("read the port of a socket"))?);
    let mut buffer = vec![0xA5; MAX_DATAGRAM];
    let blocking =
        |yes: bool| socket.set_nonblocking(!yes).map_err(BenchError::io("switch a socket between blocking and not"));
    let mut idle = Idle::default();
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) if len >= HEAD => {
                let mut wanted = [0; 8];
                wanted.copy_from_slice(&buffer[8..HEAD]);
                let wanted = usize::try_from(u64::from_be_bytes(wanted)).unwrap_or(0).clamp(HEAD, MAX_DATAGRAM);
                socket.send_to(&buffer[..wanted], from).map_err(BenchError::io("send a datagram"))?;
                if idle.is_over() {
                    blocking(false)?;
                }
                idle = Idle::default();
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if idle.spin() {
                    blocking(true)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(BenchError::io("receive a datagram")(error)),
        }
    }
}

fn bind() -> Result<UdpSocket, BenchError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BenchError::io("bind a UDP socket"))?;
    socket.set_nonblocking(true).map_err(BenchError::io("make a socket non-blocking"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_of_every_size_come_back_and_a_sleeping_peer_wakes() {
        let (sender, receiver) = std::sync::mpsc::channel();
        // The thread answers until the test's process ends.
        std::thread::spawn(move || answer(|at| sender.send(at).expect("the test waits")));
        let mut ping = UdpPing::connect(receiver.recv().expect("it binds")).expect("loopback");
        for (ask, answer) in [(HEAD, 4128), (4128, HEAD), (HEAD, HEAD), (HEAD, MAX_DATAGRAM), (MAX_DATAGRAM, HEAD)] {
            ping.exchange(ask, answer).expect("answered");
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        ping.exchange(HEAD, 100).expect("answered after a pause");
    }
}
