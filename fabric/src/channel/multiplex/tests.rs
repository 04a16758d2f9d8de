use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::task::JoinSet;

use super::*;
use crate::channel::tests::{CORRELATION, pair, request, response, soon};
use crate::ids::LeaseId;

/// A call that carries a number.
fn numbered(number: u8) -> Call {
    Call::ShowLease(LeaseId([number; 16]))
}

fn number(request: &Request) -> u8 {
    let Call::ShowLease(LeaseId(bytes)) = request.call else { panic!("a numbered call") };
    bytes[0]
}

fn refusal(text: impl Into<String>) -> Result<Reply, Refusal> {
    Err(Refusal::new(RefusalCode::Invalid, text))
}

/// What was refused, or why there was no answer.
fn refused(outcome: Result<Reply, CallError>) -> Refusal {
    match outcome {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

async fn receive_request(channel: &mut Channel<DuplexStream>) -> Request {
    match soon(channel.receive()).await.unwrap() {
        Message::Request(request) => request,
        Message::Response(response) => panic!("{response:?}"),
    }
}

async fn receive_response(channel: &mut Channel<DuplexStream>) -> Response {
    match soon(channel.receive()).await.unwrap() {
        Message::Response(response) => response,
        Message::Request(request) => panic!("{request:?}"),
    }
}

/// Lets other tasks do all that they can do now.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn both_ends_ask_at_once_and_each_answer_finds_its_call() {
    let (near, far) = pair(1 << 16);
    let mut calls = JoinSet::new();
    let mut servers = JoinSet::new();
    let mut drivers = JoinSet::new();
    for (channel, mine, theirs) in [(near, "near", "far"), (far, "far", "near")] {
        let (caller, mut incoming, driver) = channel.multiplex(8);
        drivers.spawn(driver);
        servers.spawn(async move {
            while let Some((request, answer)) = incoming.next().await {
                tokio::spawn(async move {
                    let number = number(&request);
                    tokio::time::sleep(Duration::from_micros(u64::from(number) * 37 % 500)).await;
                    answer.send(refusal(format!("{mine} {number}"))).await;
                });
            }
        });
        for number in 0..100 {
            let caller = caller.clone();
            calls.spawn(async move {
                let answer = refused(caller.call(CORRELATION, 5000, numbered(number)).await);
                assert_eq!(answer.message, format!("{theirs} {number}"));
            });
        }
    }
    soon(async {
        while let Some(call) = calls.join_next().await {
            call.unwrap()
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_answered_busy() {
    let (near, mut far) = pair(1 << 16);
    let (_caller, mut incoming, driver) = near.multiplex(2);
    let _driver = tokio::spawn(driver);
    for id in 10..14 {
        far.send(&request(id, numbered(id as u8))).await.unwrap();
    }
    for id in [12, 13] {
        let busy = receive_response(&mut far).await;
        assert_eq!((busy.id, busy.outcome.unwrap_err().code), (id, RefusalCode::Busy));
    }
    let (first, answer) = soon(incoming.next()).await.unwrap();
    assert_eq!(first.id, 10);
    answer.send(Ok(Reply::Done)).await;
    assert_eq!(receive_response(&mut far).await.id, 10);
    far.send(&request(14, numbered(14))).await.unwrap();
    let (second, kept) = soon(incoming.next()).await.unwrap();
    let (third, _kept) = soon(incoming.next()).await.unwrap();
    assert_eq!((second.id, third.id), (11, 14), "one place was free again");
    drop(kept);
}

#[tokio::test]
async fn open_requests_have_few_bytes_together() {
    let (near, mut far) = pair(1 << 16);
    let (_caller, mut incoming, driver) = near.multiplex(100);
    let _driver = tokio::spawn(driver);
    // Each is a little less than 1 MiB, so that four fit in 4 MiB.
    let offer = |id| {
        let offer = crate::message::Offer {
            boot: crate::ids::BootId([0; 16]),
            heartbeat: crate::message::Heartbeat { tick: crate::time::Tick(0), free_bytes: 0, quarantined_bytes: 0 },
            pool_bytes: 0,
            page_bytes: 0,
            device: "x".repeat((1 << 20) - 1000),
            leases: Vec::new(),
        };
        request(id, Call::Offer(offer))
    };
    for id in 0..5 {
        soon(far.send(&offer(id))).await.unwrap();
    }
    let busy = receive_response(&mut far).await;
    assert_eq!((busy.id, busy.outcome.unwrap_err().code), (4, RefusalCode::Busy));
    let (_, answer) = soon(incoming.next()).await.unwrap();
    answer.send(Ok(Reply::Done)).await;
    assert_eq!(receive_response(&mut far).await.id, 0);
    soon(far.send(&offer(5))).await.unwrap();
    for id in [1, 2, 3, 5] {
        let (request, answer) = soon(incoming.next()).await.unwrap();
        assert_eq!(request.id, id);
        answer.send(Ok(Reply::Done)).await;
    }
}

#[tokio::test]
async fn a_call_ahead_is_sent_before_all_that_wait() {
    let (near, mut far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(100);
    let mut calls = JoinSet::new();
    for number in 0..60 {
        let caller = caller.clone();
        calls.spawn(async move {
            match number {
                50.. => caller.call_ahead(CORRELATION, 5000, numbered(number)).await,
                _ => caller.call(CORRELATION, 5000, numbered(number)).await,
            }
        });
    }
    settle().await;
    let _driver = tokio::spawn(driver);
    for wanted in (50..60).chain(0..50) {
        assert_eq!(number(&receive_request(&mut far).await), wanted);
    }
}

#[tokio::test]
async fn a_call_beyond_the_limit_waits() {
    let (near, mut far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(2);
    let _driver = tokio::spawn(driver);
    let mut calls = JoinSet::new();
    for number in 0..3 {
        let caller = caller.clone();
        calls.spawn(async move { caller.call(CORRELATION, 5000, numbered(number)).await });
    }
    let first = receive_request(&mut far).await;
    let second = receive_request(&mut far).await;
    tokio::select! {
        biased;
        third = far.receive() => panic!("{third:?}"),
        () = settle() => {}
    }
    far.send(&response(second.id, refusal("second"))).await.unwrap();
    let third = receive_request(&mut far).await;
    assert_eq!([number(&first), number(&second), number(&third)], [0, 1, 2]);
    far.send(&response(third.id, refusal("third"))).await.unwrap();
    far.send(&response(first.id, refusal("first"))).await.unwrap();
    let mut texts = Vec::new();
    while let Some(call) = soon(calls.join_next()).await {
        texts.push(refused(call.unwrap()).message);
    }
    assert_eq!(texts, ["second", "third", "first"]);
}

#[tokio::test]
async fn an_answer_to_nothing_ends_the_session_for_all_who_wait() {
    let (near, mut far) = pair(1 << 16);
    let (caller, mut incoming, driver) = near.multiplex(4);
    let driver = tokio::spawn(driver);
    let mut calls = JoinSet::new();
    // Four wait for an answer, two for their turn.
    for number in 0..6 {
        let caller = caller.clone();
        calls.spawn(async move { caller.call(CORRELATION, 5000, numbered(number)).await });
    }
    for _ in 0..4 {
        receive_request(&mut far).await;
    }
    far.send(&response(1_000_000, Ok(Reply::Done))).await.unwrap();
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Protocol(_)));
    for _ in 0..6 {
        let outcome = soon(calls.join_next()).await.unwrap().unwrap();
        assert!(matches!(outcome, Err(CallError::Channel(ChannelError::Protocol(_)))), "{outcome:?}");
    }
    assert!(soon(incoming.next()).await.is_none());
    let late = soon(caller.call(CORRELATION, 5000, Call::WhoAmI)).await;
    assert!(matches!(late, Err(CallError::Channel(ChannelError::Protocol(_)))), "{late:?}");
}

#[tokio::test]
async fn who_waits_for_a_slot_learns_of_the_end_also_when_the_slot_is_held() {
    let (near, _far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(1);
    let held = caller.call(CORRELATION, 5000, Call::WhoAmI);
    tokio::pin!(held);
    tokio::select! {
        biased;
        outcome = &mut held => panic!("{outcome:?}"),
        () = std::future::ready(()) => {}
    }
    let other = caller.clone();
    let waiting = tokio::spawn(async move { other.call(CORRELATION, 5000, Call::WhoAmI).await });
    settle().await;
    drop(driver);
    let outcome = soon(waiting).await.unwrap();
    assert!(matches!(outcome, Err(CallError::Channel(ChannelError::Unusable))), "{outcome:?}");
}

#[tokio::test]
async fn an_answer_given_twice_ends_the_session() {
    let (near, mut far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(4);
    let driver = tokio::spawn(driver);
    let call = tokio::spawn(async move { caller.call(CORRELATION, 5000, Call::WhoAmI).await.map(|_| caller) });
    let id = receive_request(&mut far).await.id;
    far.send(&response(id, Ok(Reply::Done))).await.unwrap();
    let _caller = soon(call).await.unwrap().unwrap();
    far.send(&response(id, Ok(Reply::Done))).await.unwrap();
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Protocol(_)));
}

#[tokio::test]
async fn an_id_in_use_cannot_be_used_again() {
    let (near, mut far) = pair(1 << 16);
    let (_caller, mut incoming, driver) = near.multiplex(4);
    let driver = tokio::spawn(driver);
    far.send(&request(5, Call::WhoAmI)).await.unwrap();
    let (_, answer) = soon(incoming.next()).await.unwrap();
    answer.send(Ok(Reply::Done)).await;
    assert_eq!(receive_response(&mut far).await.id, 5);
    far.send(&request(5, Call::WhoAmI)).await.unwrap();
    let (again, _kept) = soon(incoming.next()).await.expect("after its answer it may");
    assert_eq!(again.id, 5);
    far.send(&request(5, Call::WhoAmI)).await.unwrap();
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Protocol(_)));
}

#[tokio::test]
async fn a_dropped_answer_says_internal() {
    let (near, mut far) = pair(1 << 16);
    let (_caller, mut incoming, driver) = near.multiplex(1);
    let _driver = tokio::spawn(driver);
    for id in 0..3 {
        far.send(&request(id, Call::WhoAmI)).await.unwrap();
        drop(soon(incoming.next()).await.unwrap());
        let answer = receive_response(&mut far).await;
        assert_eq!((answer.id, answer.outcome.unwrap_err().code), (id, RefusalCode::Internal));
    }
    drop(incoming);
    far.send(&request(3, Call::WhoAmI)).await.unwrap();
    let answer = receive_response(&mut far).await;
    assert_eq!((answer.id, answer.outcome.unwrap_err().code), (3, RefusalCode::Internal), "nobody takes requests");
}

#[tokio::test]
async fn an_abandoned_call_frees_its_slot_and_its_late_answer_is_ignored() {
    let (near, mut far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(1);
    let driver = tokio::spawn(driver);
    let mut abandoned = Vec::new();
    for number in 0..3 {
        let call = caller.call(CORRELATION, 5000, numbered(number));
        let asked = async {
            tokio::select! {
                outcome = call => panic!("{outcome:?}"),
                request = receive_request(&mut far) => request,
            }
        };
        abandoned.push(asked.await.id);
    }
    let other = caller.clone();
    let call = tokio::spawn(async move { other.call(CORRELATION, 5000, numbered(9)).await });
    let id = receive_request(&mut far).await.id;
    for late in &abandoned {
        far.send(&response(*late, refusal("late"))).await.unwrap();
    }
    far.send(&response(id, refusal("in time"))).await.unwrap();
    assert_eq!(refused(soon(call).await.unwrap()).message, "in time");
    assert!(!driver.is_finished());
    far.send(&response(abandoned[0], refusal("once more"))).await.unwrap();
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Protocol(_)), "a late answer is good once");
}

#[tokio::test]
async fn few_abandoned_calls_are_remembered() {
    let (near, mut far) = pair(1 << 20);
    let (caller, _incoming, driver) = near.multiplex(1);
    let driver = tokio::spawn(driver);
    let mut first = None;
    for _ in 0..=ABANDONED_MAX {
        tokio::select! {
            outcome = caller.call(CORRELATION, 5000, Call::WhoAmI) => panic!("{outcome:?}"),
            request = receive_request(&mut far) => { first.get_or_insert(request.id); }
        }
    }
    assert_eq!(caller.session.calls().abandoned.len(), ABANDONED_MAX);
    assert!(caller.session.calls().waiting.is_empty());
    far.send(&response(first.unwrap(), Ok(Reply::Done))).await.unwrap();
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Protocol(_)));
}

#[tokio::test]
async fn a_call_abandoned_before_it_was_sent_is_not_sent() {
    let (near, mut far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(4);
    // The driver does not run yet.
    for number in 0..3 {
        tokio::select! {
            biased;
            outcome = caller.call(CORRELATION, 5000, numbered(number)) => panic!("{outcome:?}"),
            () = std::future::ready(()) => {}
        }
    }
    let _driver = tokio::spawn(driver);
    let other = caller.clone();
    let _call = tokio::spawn(async move { other.call(CORRELATION, 5000, numbered(9)).await });
    assert_eq!(number(&receive_request(&mut far).await), 9);
    assert!(caller.session.calls().abandoned.is_empty());
}

#[tokio::test]
async fn what_is_too_long_fails_alone() {
    let (near, far) = pair(1 << 16);
    let (caller, _incoming, driver) = near.multiplex(4);
    let _driver = tokio::spawn(driver);
    let (_far_caller, mut far_incoming, far_driver) = far.multiplex(4);
    let _far_driver = tokio::spawn(far_driver);
    let long = "x".repeat(1 << 20);
    let offer = crate::message::Offer {
        boot: crate::ids::BootId([0; 16]),
        heartbeat: crate::message::Heartbeat { tick: crate::time::Tick(0), free_bytes: 0, quarantined_bytes: 0 },
        pool_bytes: 0,
        page_bytes: 0,
        device: long.clone(),
        leases: Vec::new(),
    };
    let outcome = soon(caller.call(CORRELATION, 5000, Call::Offer(offer))).await;
    assert!(matches!(outcome, Err(CallError::Channel(ChannelError::TooLong { .. }))), "{outcome:?}");
    let call = tokio::spawn(async move { caller.call(CORRELATION, 5000, Call::WhoAmI).await });
    let (_, answer) = soon(far_incoming.next()).await.unwrap();
    answer.send(refusal(long)).await;
    assert_eq!(refused(soon(call).await.unwrap()).code, RefusalCode::Internal);
}

#[tokio::test]
async fn the_session_ends_with_the_connection_and_with_its_driver() {
    let (near, far) = pair(1 << 16);
    let (caller, mut incoming, driver) = near.multiplex(4);
    let driver = tokio::spawn(driver);
    let other = caller.clone();
    let call = tokio::spawn(async move { other.call(CORRELATION, 5000, Call::WhoAmI).await });
    settle().await;
    drop(far);
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Closed));
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::Channel(ChannelError::Closed))));
    assert!(soon(incoming.next()).await.is_none());

    let (near, _far) = pair(1 << 16);
    let (caller, mut incoming, driver) = near.multiplex(4);
    let driver = tokio::spawn(driver);
    let call = tokio::spawn(async move { caller.call(CORRELATION, 5000, Call::WhoAmI).await });
    settle().await;
    driver.abort();
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::Channel(ChannelError::Unusable))));
    assert!(soon(incoming.next()).await.is_none());
}

#[tokio::test]
async fn the_session_ends_when_nobody_uses_it_and_the_last_answer_still_goes_out() {
    let (near, mut far) = pair(1 << 16);
    let (caller, mut incoming, driver) = near.multiplex(4);
    let driver = tokio::spawn(driver);
    far.send(&request(1, Call::WhoAmI)).await.unwrap();
    let (_, answer) = soon(incoming.next()).await.unwrap();
    drop((caller, incoming));
    settle().await;
    assert!(!driver.is_finished(), "an answer is still owed");
    answer.send(Ok(Reply::Done)).await;
    assert_eq!(receive_response(&mut far).await.id, 1);
    assert!(matches!(soon(driver).await.unwrap(), ChannelError::Closed));
    assert!(matches!(soon(far.receive()).await, Err(ChannelError::Closed)));
}

/// Who asks without end and reads nothing is made to wait, and takes no more memory than the limits allow.
#[tokio::test]
async fn a_flood_is_read_no_faster_than_it_is_answered() {
    let (near, far) = pair(4096);
    let (_caller, mut incoming, driver) = near.multiplex(4);
    let _driver = tokio::spawn(driver);
    let Channel { stream, mut sender, mut receiver, .. } = far;
    let (mut read, mut write) = tokio::io::split(stream);
    let flood = tokio::spawn(async move {
        for id in 0..2000 {
            sender.send(&mut write, &to_cbor(&request(id, Call::WhoAmI))).await.unwrap();
        }
    });
    settle().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!flood.is_finished(), "it waits for its answers to be read");
    let mut outcomes = Vec::new();
    for _ in 0..1996 {
        let Message::Response(response) = decode(&soon(receiver.receive(&mut read)).await.unwrap()).unwrap() else {
            panic!("a response")
        };
        outcomes.push((response.id, response.outcome.unwrap_err().code));
    }
    let expected: Vec<_> = (4..2000).map(|id| (id, RefusalCode::Busy)).collect();
    assert_eq!(outcomes, expected);
    soon(flood).await.unwrap();
    for id in 0..4 {
        assert_eq!(soon(incoming.next()).await.unwrap().0.id, id);
    }
}
