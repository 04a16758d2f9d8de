use std::time::Duration;

use tokio::io::DuplexStream;

use super::*;
use crate::ids::{Fingerprint, LeaseId};
use crate::message::RefusalCode;

const CORRELATION: CorrelationId = CorrelationId([7; 8]);

/// Two ends of a session over a pipe: the client's and the auth daemon's.
async fn pair() -> (Channel<DuplexStream>, Channel<DuplexStream>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (connected, accepted) = tokio::join!(connect(near, &client, Party::Client, |_| Ok(())), accept(far, &authd));
    let ((near, server), (far, peer)) = (connected.unwrap(), accepted.unwrap());
    assert_eq!(server, Peer { key: authd.public(), party: Party::Authd });
    assert_eq!(peer, Peer { key: client.public(), party: Party::Client });
    (near, far)
}

/// A test that hangs fails.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("done by now")
}

#[tokio::test]
async fn a_call_is_answered() {
    let (mut near, mut far) = pair().await;
    let server = async {
        let Message::Request(request) = far.receive().await.unwrap() else { panic!("a request") };
        assert_eq!((request.correlation, request.deadline_ms, &request.call), (CORRELATION, 5000, &Call::WhoAmI));
        let outcome = Err(Refusal::new(RefusalCode::Pending, "Wait."));
        far.send(&Message::Response(crate::message::Response { id: request.id, outcome })).await.unwrap();
        let Message::Request(request) = far.receive().await.unwrap() else { panic!("a request") };
        let outcome = Ok(Reply::Done);
        far.send(&Message::Response(crate::message::Response { id: request.id, outcome })).await.unwrap();
    };
    let client = async {
        let refused = near.call(CORRELATION, 5000, Call::WhoAmI).await;
        assert!(matches!(refused, Err(CallError::Refused(Refusal { code: RefusalCode::Pending, .. }))));
        assert_eq!(near.call(CORRELATION, 5000, Call::ListLeases).await.unwrap(), Reply::Done);
    };
    soon(async { tokio::join!(server, client) }).await;
    drop(far);
    assert!(matches!(near.receive().await, Err(ChannelError::Closed)));
}

#[tokio::test]
async fn the_longest_message_travels_and_a_longer_one_is_refused_here() {
    let (mut near, mut far) = pair().await;
    // CBOR around the text: found by trying.
    let message = |bytes: usize| {
        let outcome = Err(Refusal::new(RefusalCode::Internal, "x".repeat(bytes)));
        Message::Response(crate::message::Response { id: 1, outcome })
    };
    let around = to_cbor(&message(1 << 19)).len() - (1 << 19);
    let longest = message((1 << 20) - around);
    assert_eq!(to_cbor(&longest).len(), 1 << 20);
    assert!(matches!(
        near.send(&message((1 << 20) - around + 1)).await,
        Err(ChannelError::TooLong { bytes: 1_048_577 })
    ));
    let (sent, received) = soon(async { tokio::join!(near.send(&longest), far.receive()) }).await;
    sent.unwrap();
    assert_eq!(received.unwrap(), longest);
}

#[tokio::test]
async fn both_ends_ask_at_once() {
    let (near, far) = pair().await;
    let (near, mut near_incoming, near_driver) = near.multiplex(8);
    let (far, mut far_incoming, far_driver) = far.multiplex(8);
    let near_driver = tokio::spawn(near_driver);
    let far_driver = tokio::spawn(far_driver);
    for (mut incoming, shift) in [
        (std::mem::replace(&mut near_incoming, dead_incoming().await), 1),
        (std::mem::replace(&mut far_incoming, dead_incoming().await), 2),
    ] {
        tokio::spawn(async move {
            while let Some((request, answer)) = incoming.next().await {
                tokio::spawn(async move {
                    let Call::ShowLease(LeaseId(bytes)) = request.call else { panic!("that call") };
                    tokio::time::sleep(Duration::from_micros(u64::from(bytes[0]) * 7 % 300)).await;
                    let message = format!("{}", u32::from(bytes[0]) + shift);
                    answer.send(Err(Refusal::new(RefusalCode::Invalid, message))).await;
                });
            }
        });
    }
    let mut calls = tokio::task::JoinSet::new();
    for (caller, shift) in [(near.clone(), 2), (far.clone(), 1)] {
        for number in 0..100u8 {
            let caller = caller.clone();
            calls.spawn(async move {
                let outcome = caller.call(CORRELATION, 5000, Call::ShowLease(LeaseId([number; 16]))).await;
                let Err(CallError::Refused(refusal)) = outcome else { panic!("{outcome:?}") };
                assert_eq!(refusal.message, (u32::from(number) + shift).to_string());
            });
        }
    }
    soon(async {
        while let Some(call) = calls.join_next().await {
            call.unwrap()
        }
    })
    .await;
    drop((near, far));
    let _ = (near_driver, far_driver);
    let _ = Fingerprint([0; 20]);
}
async fn dead_incoming() -> Incoming {
    let (near, _far) = pair().await;
    near.multiplex(1).1
}
