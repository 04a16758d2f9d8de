//! Redis' protocol, as far as it is needed: GET and SET of values of one size, a number of them outstanding, over a stream
//! that does not block.

use std::io::{ErrorKind, Read, Write};

use overbank_verbs::Op;

use crate::error::BenchError;
use crate::patience::Patience;
use crate::rates::{Clock, Pace, Rate};

/// Who is waited for.
const PEER: &str = "redis-server";
/// Most of an answer that an error repeats.
const SHOWN: usize = 200;

/// A stream that does not block, plain or sealed.
pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// The byte of a value: `contents` makes one turn's differ from another's, and slots and pages differ from each other.
fn byte(contents: u8, slot: usize, at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 12 ^ slot) as u8 ^ contents
}

/// A command, its words as RESP has them.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Requests of one kind, round and round over a number of keys, and what is answered. All requests are as long as each
/// other and so are all answers, so both are rings: a slot of either for each key.
pub(crate) struct Flow {
    op: Op,
    depth: usize,
    /// What every answer begins with.
    head: Vec<u8>,
    requests: Ring,
    answers: Ring,
    /// Bytes of requests that may go out now.
    unsent: usize,
}

/// Slots of one length, and where in them the stream is.
struct Ring {
    bytes: Vec<u8>,
    slot: usize,
    at: usize,
}

impl Ring {
    fn new(bytes: Vec<u8>, depth: usize) -> Self {
        Self { slot: bytes.len() / depth, bytes, at: 0 }
    }

    /// Goes on; how many slots were completed.
    fn advance(&mut self, bytes: usize) -> usize {
        let completed = (self.at % self.slot + bytes) / self.slot;
        self.at = (self.at + bytes) % self.bytes.len();
        completed
    }
}

/// What one look brought.
struct Found {
    /// Whether any byte went either way.
    moved: bool,
    /// Answers that are complete now.
    answers: usize,
}

impl Flow {
    /// Of values of this size, so many outstanding. SETs write these `contents`.
    pub(crate) fn new(op: Op, size: usize, depth: usize, contents: u8) -> Self {
        let mut requests = Vec::new();
        for slot in 0..depth {
            let key = format!("key{slot:06}");
            match op {
                Op::Read => requests.extend(command(&[b"GET", key.as_bytes()])),
                Op::Write => {
                    let value: Vec<u8> = (0..size).map(|at| byte(contents, slot, at)).collect();
                    requests.extend(command(&[b"SET", key.as_bytes(), &value]));
                }
            }
        }
        let (head, answer) = match op {
            Op::Read => {
                let head = format!("${size}\r\n").into_bytes();
                let answer = head.len() + size + 2;
                (head, answer)
            }
            Op::Write => (b"+OK\r\n".to_vec(), 5),
        };
        let answers = Ring::new(vec![0; answer * depth], depth);
        Self { op, depth, head, requests: Ring::new(requests, depth), answers, unsent: 0 }
    }

    /// One operation, from sending it until its answer is here.
    pub(crate) fn once(&mut self, stream: &mut dyn Stream) -> Result<(), BenchError> {
        self.all(1, stream)
    }

    /// As many operations, and no more outstanding than there may be.
    fn all(&mut self, count: usize, stream: &mut dyn Stream) -> Result<(), BenchError> {
        let (mut asked, mut answered) = (count.min(self.depth), 0);
        self.ask(asked);
        let mut patience = Patience::with(PEER);
        while answered < count {
            let found = self.look(stream)?;
            answered += found.answers;
            let more = found.answers.min(count - asked);
            asked += more;
            self.ask(more);
            if found.moved {
                patience = Patience::with(PEER);
            } else {
                patience.spin()?;
            }
        }
        Ok(())
    }

    /// Each key once.
    pub(crate) fn round(&mut self, stream: &mut dyn Stream) -> Result<(), BenchError> {
        self.all(self.depth, stream)
    }

    /// Keeps all outstanding: untimed, then timed, then until the last is answered.
    pub(crate) fn rate(&mut self, pace: &Pace, stream: &mut dyn Stream) -> Result<Rate, BenchError> {
        self.ask(self.depth);
        let (mut outstanding, mut all) = (self.depth, 0_u64);
        let (mut clock, mut timed) = (Clock::start(pace), None);
        let mut patience = Patience::with(PEER);
        while outstanding > 0 {
            let found = self.look(stream)?;
            if !found.moved {
                patience.spin()?;
                continue;
            }
            patience = Patience::with(PEER);
            all += found.answers as u64;
            if timed.is_some() {
                outstanding -= found.answers;
                continue;
            }
            self.ask(found.answers);
            timed = clock.look(all);
        }
        timed.ok_or_else(|| failed("was not timed"))
    }

    /// Whether the values that came are those with these `contents`.
    pub(crate) fn holds(&self, contents: u8) -> bool {
        self.answers.bytes.chunks(self.answers.slot).enumerate().all(|(slot, answer)| {
            let value = answer.strip_prefix(&*self.head).and_then(|answer| answer.strip_suffix(b"\r\n"));
            self.op == Op::Read
                && value
                    .is_some_and(|value| value.iter().enumerate().all(|(at, found)| *found == byte(contents, slot, at)))
        })
    }

    fn ask(&mut self, count: usize) {
        self.unsent += count * self.requests.slot;
    }

    /// Sends what can be sent and takes what has come.
    fn look(&mut self, stream: &mut dyn Stream) -> Result<Found, BenchError> {
        let mut moved = false;
        if self.unsent > 0 {
            let end = (self.requests.at + self.unsent).min(self.requests.bytes.len());
            if let Some(sent) = carried(stream.write(&self.requests.bytes[self.requests.at..end]))? {
                self.requests.advance(sent);
                self.unsent -= sent;
                moved = true;
            }
        }
        let from = self.answers.at;
        let Some(read) = carried(stream.read(&mut self.answers.bytes[from..]))? else {
            return Ok(Found { moved, answers: 0 });
        };
        let answers = self.answers.advance(read);
        for begin in (from - from % self.answers.slot..from + read).step_by(self.answers.slot) {
            let here = &self.answers.bytes[begin..(from + read).min(begin + self.answers.slot)];
            if !here.iter().zip(&self.head).all(|(found, wanted)| found == wanted) {
                let said = String::from_utf8_lossy(&here[..here.len().min(SHOWN)]);
                return Err(failed(&format!("answered '{}'", said.trim())));
            }
        }
        Ok(Found { moved: true, answers })
    }
}

/// Asks for something that is answered by OK.
pub(crate) fn order(words: &[&[u8]], stream: &mut dyn Stream) -> Result<(), BenchError> {
    let requests = Ring::new(command(words), 1);
    let answers = Ring::new(vec![0; 5], 1);
    Flow { op: Op::Write, depth: 1, head: b"+OK\r\n".to_vec(), requests, answers, unsent: 0 }.once(stream)
}

/// Bytes that went; none where none can go now.
fn carried(outcome: std::io::Result<usize>) -> Result<Option<usize>, BenchError> {
    match outcome {
        Ok(0) => Err(failed("closed the connection")),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(BenchError::io(format!("talk to {PEER}"))(error)),
    }
}

fn failed(what: &str) -> BenchError {
    BenchError::Child { program: PEER.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Takes and gives a few bytes at a time, and every other time none.
    struct Slow {
        asked: Vec<u8>,
        answers: Vec<u8>,
        given: usize,
        turn: bool,
        /// How long a request and its answer are, where nothing is answered unasked.
        lengths: Option<(usize, usize)>,
    }

    impl Slow {
        fn giving(answers: &[u8]) -> Self {
            Self { asked: Vec::new(), answers: answers.to_vec(), given: 0, turn: false, lengths: None }
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(7);
            self.asked.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Slow {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.turn = !self.turn;
            if self.turn {
                return Err(ErrorKind::WouldBlock.into());
            }
            let asked = self.lengths.map(|(request, answer)| self.asked.len() / request * answer);
            let there = asked.unwrap_or(usize::MAX).min(self.answers.len()) - self.given;
            if there == 0 && asked.is_some() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let given = bytes.len().min(3).min(there);
            bytes[..given].copy_from_slice(&self.answers[self.given..self.given + given]);
            self.given += given;
            Ok(given)
        }
    }

    fn answer(contents: u8, slot: usize, size: usize) -> Vec<u8> {
        let value = (0..size).map(|at| byte(contents, slot, at));
        format!("${size}\r\n").into_bytes().into_iter().chain(value).chain(*b"\r\n").collect()
    }

    #[test]
    fn values_come_in_pieces_and_are_the_right_ones() {
        let both = [answer(9, 0, 20), answer(9, 1, 20)].concat();
        let mut stream = Slow::giving(&[both.clone(), both].concat());
        let mut flow = Flow::new(Op::Read, 20, 2, 9);
        flow.all(4, &mut stream).expect("four answers");
        assert!(flow.holds(9) && !flow.holds(8));
        let asked = String::from_utf8(stream.asked).expect("text");
        let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n$9\r\n{key}\r\n");
        assert_eq!(asked, [get("key000000"), get("key000001")].concat().repeat(2));
    }

    #[test]
    fn a_refusal_or_another_length_ends_it_at_once() {
        for bad in ["-NOAUTH no\r\n", "$19\r\n", "$-1\r\n"] {
            let mut stream = Slow::giving(bad.as_bytes());
            let error = Flow::new(Op::Read, 20, 1, 0).once(&mut stream).expect_err(bad);
            assert!(error.to_string().contains("answered '"), "{error}");
        }
        assert!(Flow::new(Op::Write, 3, 1, 0).once(&mut Slow::giving(b"+OK")).is_err(), "it closed");
    }

    #[test]
    fn one_wrong_byte_is_seen() {
        let mut wrong = answer(1, 0, 300);
        wrong[299] ^= 1;
        let mut flow = Flow::new(Op::Read, 300, 1, 1);
        flow.once(&mut Slow::giving(&wrong)).expect("an answer");
        assert!(!flow.holds(1));
    }

    #[test]
    fn all_that_was_asked_is_answered_when_a_rate_ends() {
        let pace = Pace { rounds: 1, seconds: 1.0, count: Some(10), warmup_seconds: 0.0 };
        let set = command(&[b"SET", b"key000000", b"12345"]).len();
        let mut stream = Slow { lengths: Some((set, 5)), ..Slow::giving(&b"+OK\r\n".repeat(1000)) };
        let rate = Flow::new(Op::Write, 5, 4, 0).rate(&pace, &mut stream).expect("a rate");
        assert!(rate.operations >= 10);
        assert_eq!(stream.asked.len() / set, stream.given / 5);
        assert_eq!((stream.asked.len() % set, stream.given % 5), (0, 0));
    }
}
