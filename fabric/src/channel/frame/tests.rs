use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;
use crate::channel::tests::{keys, soon};

/// Both ends of one direction.
fn ends() -> (Sender, Receiver) {
    let (near, far) = keys();
    (Sender::new(near.send), Receiver::new(far.receive))
}

/// A frame of whoever has the keys and no manners.
fn frame(sender: &mut Sender, plaintext: &[u8]) -> Vec<u8> {
    let mut frame = ((plaintext.len() + TAG_LEN) as u16).to_be_bytes().to_vec();
    sender.key.seal(plaintext, &mut frame).unwrap();
    frame
}

async fn framed(sender: &mut Sender, message: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    sender.send(&mut stream, message).await.unwrap();
    stream
}

#[tokio::test]
async fn messages_of_every_size_travel_in_full_frames() {
    let (mut sender, mut receiver) = ends();
    for (length, frames) in [(1, 1), (65_518, 1), (65_519, 2), (2 * 65_518, 2), (2 * 65_518 + 1, 3), (1 << 20, 17)] {
        let message: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let stream = framed(&mut sender, &message).await;
        assert_eq!(stream.len(), length + frames * (2 + 1 + 16), "{length} bytes");
        assert_eq!(stream[..2], ((length.min(65_518) + 17) as u16).to_be_bytes());
        let mut rest = &stream[..];
        assert_eq!(receiver.receive(&mut rest).await.unwrap(), message);
        assert!(rest.is_empty());
    }
    for length in [0, (1 << 20) + 1] {
        let mut stream = Vec::new();
        let refused = sender.send(&mut stream, &vec![0; length]).await;
        assert!(matches!(refused, Err(ChannelError::TooLong { bytes }) if bytes == length));
        assert!(stream.is_empty());
    }
    let stream = framed(&mut sender, b"and it goes on").await;
    assert_eq!(receiver.receive(&mut &stream[..]).await.unwrap(), b"and it goes on");
}

#[tokio::test]
async fn frames_of_bad_manners_end_the_session() {
    let full = |more: u8| [&[more][..], &[7; CHUNK_MAX]].concat();
    for (what, plaintext) in [
        ("neither more nor last", b"\x02text".to_vec()),
        ("neither more nor last", b"\xfftext".to_vec()),
        ("more, and not full", b"\x01text".to_vec()),
        ("more, and one byte short of full", full(1)[..CHUNK_MAX].to_vec()),
        ("neither, and full", full(2)),
    ] {
        let (mut sender, mut receiver) = ends();
        let bad = frame(&mut sender, &plaintext);
        let good = framed(&mut sender, b"good").await;
        let mut stream = &[bad, good].concat()[..];
        let refused = receiver.receive(&mut stream).await;
        assert!(matches!(refused, Err(ChannelError::Malformed(_))), "{what}: {refused:?}");
        assert!(matches!(receiver.receive(&mut stream).await, Err(ChannelError::Unusable)), "{what}");
    }
}

#[tokio::test]
async fn a_frame_too_short_is_refused_by_its_length() {
    let (mut sender, _) = ends();
    let shortest = frame(&mut sender, b"\x00x");
    assert_eq!(shortest.len(), 2 + 18);
    for length in 0..18u16 {
        let (_, mut receiver) = ends();
        let stream = [&length.to_be_bytes()[..], &[0; 40]].concat();
        let mut rest = &stream[..];
        assert!(matches!(receiver.receive(&mut rest).await, Err(ChannelError::Malformed(_))), "{length}");
        assert_eq!(rest.len(), 40, "nothing of it was read");
    }
}

#[tokio::test]
async fn a_message_without_end_is_cut_at_one_mib() {
    let (mut sender, mut receiver) = ends();
    let full = [&[1][..], &[7; CHUNK_MAX]].concat();
    let stream: Vec<u8> = (0..100).flat_map(|_| frame(&mut sender, &full)).collect();
    let mut rest = &stream[..];
    assert!(matches!(receiver.receive(&mut rest).await, Err(ChannelError::Malformed(_))));
    assert_eq!(stream.len() - rest.len(), 17 * (2 + 65_535), "the frame that passes 1 MiB is the last that is read");
    assert!(receiver.message.capacity() <= 2 << 20);
}

#[tokio::test]
async fn room_is_made_for_what_comes_and_not_for_what_is_claimed() {
    let (_, mut receiver) = ends();
    let (mut near, mut far) = tokio::io::duplex(1 << 20);
    near.write_all(b"\xff\xff0123456789").await.unwrap();
    tokio::select! {
        biased;
        _ = receiver.receive(&mut far) => panic!("it is not whole"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(receiver.frame.len(), 12);
    assert!(receiver.frame.capacity() < 4 * READ_STEP, "{}", receiver.frame.capacity());
}

#[tokio::test]
async fn a_stream_cut_anywhere_is_told_from_one_that_was_closed() {
    let (mut sender, _) = ends();
    let length = [&framed(&mut sender, &[7; 100]).await[..], &framed(&mut sender, &[8; 66_000]).await].concat().len();
    // Also where the first frame of the second message ends.
    let cuts = (0..300).chain((300..length).step_by(997)).chain([119 + 2 + 65_535]).chain(length - 2..=length);
    for cut in cuts {
        let (mut sender, mut receiver) = ends();
        let first = framed(&mut sender, &[7; 100]).await;
        let stream = [&first[..], &framed(&mut sender, &[8; 66_000]).await].concat();
        let mut rest = &stream[..cut];
        assert_eq!(first.len(), 119);
        if cut >= first.len() {
            assert!(receiver.receive(&mut rest).await.is_ok(), "cut at {cut}");
        }
        if cut == length {
            assert!(receiver.receive(&mut rest).await.is_ok(), "cut at {cut}");
        }
        let between = [0, first.len(), length].contains(&cut);
        match receiver.receive(&mut rest).await {
            Err(ChannelError::Closed) => assert!(between, "cut at {cut}"),
            Err(ChannelError::Io(error)) => {
                assert!(!between && error.kind() == io::ErrorKind::UnexpectedEof, "cut at {cut}");
            }
            other => panic!("cut at {cut}: {other:?}"),
        }
        assert!(matches!(receiver.receive(&mut rest).await, Err(ChannelError::Unusable)));
    }
}

#[tokio::test]
async fn records_lost_repeated_or_exchanged_end_the_session() {
    for (order, good) in [(&[0, 0, 1][..], 1), (&[1, 0], 0), (&[0, 2], 1), (&[0, 1, 2], 3)] {
        let (mut sender, mut receiver) = ends();
        let mut frames = Vec::new();
        for number in 0..3 {
            frames.push(framed(&mut sender, &[number; 20]).await);
        }
        let stream: Vec<u8> = order.iter().flat_map(|at| frames[*at].clone()).collect();
        let mut rest = &stream[..];
        for number in 0..good {
            assert_eq!(receiver.receive(&mut rest).await.unwrap(), [number; 20]);
        }
        if usize::from(good) < order.len() {
            assert!(matches!(receiver.receive(&mut rest).await, Err(ChannelError::Unreadable)), "{order:?}");
            assert!(matches!(receiver.receive(&mut rest).await, Err(ChannelError::Unusable)), "{order:?}");
        }
    }
}

#[tokio::test]
async fn receiving_loses_nothing_when_it_is_dropped() {
    let (mut sender, mut receiver) = ends();
    let messages = [vec![7; 100], vec![8; 65_519]];
    let mut stream = Vec::new();
    for message in &messages {
        stream.extend(framed(&mut sender, message).await);
    }
    let (mut near, mut far) = tokio::io::duplex(1 << 20);
    let mut received = Vec::new();
    for piece in stream.chunks(113) {
        near.write_all(piece).await.unwrap();
        loop {
            tokio::select! {
                biased;
                message = receiver.receive(&mut far) => received.push(message.unwrap()),
                () = std::future::ready(()) => break,
            }
        }
    }
    assert_eq!(received, messages);
}

#[tokio::test]
async fn sending_that_was_cut_off_is_not_taken_up_again() {
    let (mut sender, _) = ends();
    let (mut near, _far) = tokio::io::duplex(10);
    tokio::select! {
        biased;
        _ = sender.send(&mut near, b"longer than the pipe holds") => panic!("nobody reads"),
        () = tokio::task::yield_now() => {}
    }
    let mut stream = Vec::new();
    assert!(matches!(sender.send(&mut stream, b"more").await, Err(ChannelError::Unusable)));
    assert!(stream.is_empty());
}

/// A stream that comes in pieces of the given sizes, then of what is left.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    sizes: VecDeque<usize>,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let size = self.sizes.pop_front().unwrap_or(usize::MAX);
        let size = size.min(out.remaining()).min(self.bytes.len() - self.at);
        out.put_slice(&self.bytes[self.at..self.at + size]);
        self.at += size;
        Poll::Ready(Ok(()))
    }
}

/// All that a receiver makes of a stream: the messages, and the error in the end.
fn read_all(receiver: &mut Receiver, stream: &mut Pieces) -> (Vec<Vec<u8>>, ChannelError) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(soon(async {
        let mut messages = Vec::new();
        loop {
            match receiver.receive(stream).await {
                Ok(message) => messages.push(message),
                Err(error) => return (messages, error),
            }
        }
    }))
}

fn send_all(messages: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>, Receiver) {
    let (mut sender, receiver) = ends();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut stream, mut ends) = (Vec::new(), Vec::new());
    for message in messages {
        runtime.block_on(sender.send(&mut stream, message)).unwrap();
        ends.push(stream.len());
    }
    (stream, ends, receiver)
}

fn sizes() -> impl Strategy<Value = VecDeque<usize>> {
    proptest::collection::vec_deque(1usize..3000, 0..40)
}

fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let message = prop_oneof![
        9 => proptest::collection::vec(any::<u8>(), 1..200),
        1 => (65_500usize..66_000).prop_map(|length| vec![5; length]),
    ];
    proptest::collection::vec(message, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn messages_arrive_however_they_are_cut_into_pieces(messages in messages(), sizes in sizes()) {
        let (bytes, _, mut receiver) = send_all(&messages);
        let (received, error) = read_all(&mut receiver, &mut Pieces { bytes, at: 0, sizes });
        prop_assert_eq!(received, messages);
        prop_assert!(matches!(error, ChannelError::Closed), "{}", error);
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..5000), sizes in sizes()) {
        let empty = bytes.is_empty();
        let (_, _, mut receiver) = send_all(&[]);
        let (received, error) = read_all(&mut receiver, &mut Pieces { bytes, at: 0, sizes });
        prop_assert!(received.is_empty());
        prop_assert_eq!(matches!(error, ChannelError::Closed), empty);
    }

    #[test]
    fn a_changed_byte_ends_the_session_where_it_is(
        messages in messages(),
        sizes in sizes(),
        at in any::<proptest::sample::Index>(),
        bits in 1u8..,
    ) {
        prop_assume!(!messages.is_empty());
        let (mut bytes, ends, mut receiver) = send_all(&messages);
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        let (received, error) = read_all(&mut receiver, &mut Pieces { bytes, at: 0, sizes });
        let untouched = ends.iter().filter(|end| **end <= at).count();
        prop_assert_eq!(received, &messages[..untouched]);
        prop_assert!(!matches!(error, ChannelError::Closed));
    }
}
