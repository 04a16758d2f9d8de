//! TCP ping-pong with busy polling: the floor of what sends its bytes over a stream.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::error::BenchError;
use crate::patience::{Idle, Patience};
use crate::udp::HEAD;

/// Largest length that an answering end believes.
const MAX_STREAM: usize = 1 << 24;

/// The asking end. A question is two big-endian lengths (its own, its answer's) and filler; the answer is filler.
pub(crate) struct TcpPing {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl TcpPing {
    /// Towards an answering end.
    pub(crate) fn connect(peer: SocketAddr) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(peer).map_err(BenchError::io(format!("reach {peer}")))?;
        polled(&stream)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends `ask` bytes, polls until `answer` bytes are back. Both at least [`HEAD`], at most [`MAX_STREAM`].
    pub(crate) fn exchange(&mut self, ask: usize, answer: usize) -> Result<(), BenchError> {
        self.buffer.resize(ask.max(answer), 0xA5);
        self.buffer[..8].copy_from_slice(&(ask as u64).to_be_bytes());
        self.buffer[8..HEAD].copy_from_slice(&(answer as u64).to_be_bytes());
        send(&mut self.stream, &self.buffer[..ask])?;
        let mut patience = Patience::with("the TCP peer");
        let mut filled = 0;
        while filled < answer {
            match self.stream.read(&mut self.buffer[filled..answer]) {
                Ok(0) => return Err(BenchError::io("receive from a stream")(ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => patience.spin()?,
                Err(error) => return Err(BenchError::io("receive from a stream")(error)),
            }
        }
        Ok(())
    }
}

/// The answering end of one connection: says its address through `ready`, then answers until the asker goes.
pub(crate) fn answer(ready: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BenchError::io("bind a TCP socket"))?;
    ready(listener.local_addr().map_err(BenchError::io("read the port of a socket"))?);
    let (mut stream, _) = listener.accept().map_err(BenchError::io("accept a connection"))?;
    polled(&stream)?;
    let mut buffer = vec![0xA5; HEAD];
    loop {
        if !receive(&mut stream, &mut buffer[..HEAD])? {
            return Ok(());
        }
        let length = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&buffer[at..at + 8]);
            usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(MAX_STREAM).clamp(HEAD, MAX_STREAM)
        };
        let (asked, wanted) = (length(0), length(8));
        buffer.resize(asked.max(wanted), 0xA5);
        if !receive(&mut stream, &mut buffer[HEAD..asked])? {
            return Ok(());
        }
        send(&mut stream, &buffer[..wanted])?;
    }
}

/// Without delay, and not blocking.
pub(crate) fn polled(stream: &TcpStream) -> Result<(), BenchError> {
    stream.set_nodelay(true).map_err(BenchError::io("switch off Nagle's delay"))?;
    blocking(stream, false)
}

fn blocking(stream: &TcpStream, yes: bool) -> Result<(), BenchError> {
    stream.set_nonblocking(!yes).map_err(BenchError::io("switch a socket between blocking and not"))
}

fn send(stream: &mut TcpStream, mut bytes: &[u8]) -> Result<(), BenchError> {
    let mut patience = Patience::with("the TCP peer");
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => patience.spin()?,
            Err(error) => return Err(BenchError::io("send to a stream")(error)),
        }
    }
    Ok(())
}

/// Fills `bytes`, polling first and sleeping where nothing comes; false where the other end has closed.
fn receive(stream: &mut TcpStream, bytes: &mut [u8]) -> Result<bool, BenchError> {
    let mut idle = Idle::default();
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if idle.spin() {
                    blocking(stream, true)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(BenchError::io("receive from a stream")(error)),
        }
    }
    if idle.is_over() {
        blocking(stream, false)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_of_every_size_come_back_and_the_peer_ends_with_its_asker() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let peer = std::thread::spawn(move || answer(|at| sender.send(at).expect("the test waits")));
        let mut ping = TcpPing::connect(receiver.recv().expect("it binds")).expect("loopback");
        for (ask, answer) in [(HEAD, 4128), (4128, HEAD), (HEAD, HEAD), (HEAD, 1 << 20), (1 << 20, HEAD)] {
            ping.exchange(ask, answer).expect("answered");
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        ping.exchange(HEAD, 100).expect("answered after a pause");
        drop(ping);
        peer.join().expect("no panic").expect("a good end");
    }
}
