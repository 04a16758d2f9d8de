//! Connections that break, and writes whose outcome is open.

use std::time::{Duration, Instant};

use overbank::data::{DataError, SealedLane};

use crate::lender::*;

const SIZE: usize = 4096;

fn read(lane: &mut SealedLane, block: u64) -> Result<Vec<u8>, DataError> {
    let mut out = vec![0xa5; SIZE];
    lane.read(block * SIZE as u64, &mut out, soon()).map(|()| out)
}

#[test]
fn a_silent_provider_is_said_to_be_silent_and_the_lane_goes_on_after_an_attach() {
    let contents = contents(40, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach_with(&contents, HASTY);
    lane.write(0, &pattern(40 * SIZE, 1), soon()).unwrap();
    lender.hang_up();

    let mut out = vec![0xa5; 40 * SIZE];
    assert!(matches!(lane.read(0, &mut out, soon()), Err(DataError::ProviderSilent)));
    assert!(lane.is_broken() && out.iter().all(|&byte| byte == 0));
    // At once, for nothing is asked any more.
    let begun = Instant::now();
    assert!(matches!(lane.read(0, &mut out, soon()), Err(DataError::ProviderSilent)));
    assert!(matches!(lane.write(0, &out, soon()), Err(DataError::ProviderSilent)));
    // Three sendings take 30 ms.
    assert!(begun.elapsed() < Duration::from_millis(25));

    lender.attach_anew(&mut lane);
    assert!(!lane.is_broken());
    lane.read(0, &mut out, soon()).unwrap();
    assert!(out == pattern(40 * SIZE, 1));
}

#[test]
fn writes_that_were_cut_off_are_unsettled_until_they_are_written_again() {
    let contents = contents(200, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach_with(&contents, HASTY);
    lane.write(0, &pattern(200 * SIZE, 1), soon()).unwrap();
    let mut other = lender.attach(&contents);
    let before = lender.stride_of(3);
    // Only the first lane loses its connection.
    drop(lender.take_qp(0));

    assert!(matches!(lane.write(3 * SIZE as u64, &pattern(30 * SIZE, 2), soon()), Err(DataError::ProviderSilent)));
    assert!(lender.stride_of(3) == before, "it has not arrived");
    // The old content is still there and would open. Nobody may take it for the last one.
    for block in [3, 32] {
        assert!(matches!(read(&mut other, block), Err(DataError::Unsettled { block: b }) if b == block));
    }
    assert_eq!(read(&mut other, 2).unwrap(), pattern(200 * SIZE, 1)[2 * SIZE..3 * SIZE]);
    assert!(matches!(other.write(3 * SIZE as u64, &[0; SIZE], soon()), Err(DataError::Unsettled { block: 3 })));
    assert!(matches!(other.write(3 * SIZE as u64 + 1, &[0; 10], soon()), Err(DataError::Unsettled { block: 3 })));
    assert!(!contents.freshness.is_known());

    lender.attach_anew(&mut lane);
    let mut out = vec![0; 200 * SIZE];
    for lane in [&mut lane, &mut other] {
        lane.read(0, &mut out, soon()).unwrap();
        assert!(out[..3 * SIZE] == pattern(200 * SIZE, 1)[..3 * SIZE]);
        assert!(out[3 * SIZE..33 * SIZE] == pattern(30 * SIZE, 2));
        assert!(out[33 * SIZE..] == pattern(200 * SIZE, 1)[33 * SIZE..]);
    }
    assert!(contents.freshness.is_known());
    // The slots are free again.
    lane.write(0, &pattern(200 * SIZE, 3), soon()).unwrap();
    lane.read(0, &mut out, soon()).unwrap();
    assert!(out == pattern(200 * SIZE, 3));
}

/// A lender that neither answers nor goes away. What does not come in time is late, not tampered with.
#[test]
fn attack_28_a_lender_that_stalls() {
    let contents = contents(40, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach_with(&contents, STUBBORN);
    lane.write(0, &pattern(40 * SIZE, 1), soon()).unwrap();
    lender.hang_up();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let begun = Instant::now();
        let deadline = || Instant::now() + Duration::from_millis(100);
        let mut out = vec![0xa5; 40 * SIZE];
        let read = lane.read(0, &mut out, deadline());
        let write = lane.write(20 * SIZE as u64, &pattern(SIZE, 2), deadline());
        // Fails only where nobody waits any more.
        let _ = tell.send((begun.elapsed(), read, write, out, lane));
    });
    let (took, read, write, mut out, mut lane) = told.recv_timeout(Duration::from_secs(10)).expect("it waits for ever");
    for result in [read, write] {
        let error = result.expect_err("nobody answered");
        assert!(matches!(error, DataError::Timeout) && !error.is_contents(), "{error}");
    }
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(out.iter().all(|&byte| byte == 0));
    // Once it answers again, all is as it was written.
    lender.attach_anew(&mut lane);
    let mut expected = pattern(40 * SIZE, 1);
    expected[20 * SIZE..21 * SIZE].copy_from_slice(&pattern(SIZE, 2));
    lane.read(0, &mut out, soon()).unwrap();
    assert!(out == expected);
    println!("attack 28 {}: seen a read and a write end at their deadlines, as late and not as changed", device_name());
}

#[test]
fn a_write_that_timed_out_is_unsettled_although_the_connection_stands() {
    let contents = contents(8, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach_with(&contents, STUBBORN);
    lane.write(0, &pattern(SIZE, 1), soon()).unwrap();
    lender.hang_up();
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(50);
    assert!(matches!(lane.write(0, &pattern(SIZE, 2), deadline), Err(DataError::Timeout)));
    assert!(matches!(lane.read(SIZE as u64, &mut [0; SIZE], deadline), Err(DataError::Timeout)));
    // It waits for its own write, which may still come in.
    let later = Instant::now() + Duration::from_millis(50);
    assert!(matches!(lane.write(0, &pattern(SIZE, 2), later), Err(DataError::Timeout)));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!lane.is_broken());

    // Whoever asks next to it is told.
    let mut other = lender.attach(&contents);
    assert!(matches!(read(&mut other, 0), Err(DataError::Unsettled { block: 0 })));

    lender.attach_anew(&mut lane);
    assert_eq!(read(&mut lane, 0).unwrap(), pattern(SIZE, 2));
    assert_eq!(read(&mut other, 0).unwrap(), pattern(SIZE, 2));
}

#[test]
fn a_write_that_times_out_and_comes_in_late_is_settled_by_its_answer() {
    let contents = contents(4000, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    let bytes = pattern(4000 * SIZE, 5);
    // Too short for all of it.
    let result = lane.write(0, &bytes, Instant::now() + Duration::from_millis(2));
    assert!(matches!(result, Err(DataError::Timeout)), "{result:?}");
    std::thread::sleep(Duration::from_millis(50));
    // What was in flight is settled by now, if only somebody looks.
    lane.write(3999 * SIZE as u64, &bytes[..SIZE], soon()).unwrap();
    assert!(contents.freshness.is_known());
    let mut out = vec![0; SIZE];
    for block in 0..4000_usize {
        lane.read((block * SIZE) as u64, &mut out, soon()).unwrap();
        let all_zero = out.iter().all(|&byte| byte == 0);
        assert!(block == 3999 || all_zero || out == bytes[block * SIZE..(block + 1) * SIZE], "block {block}");
    }
}

#[test]
fn a_provider_that_refuses_is_said_to_refuse() {
    let contents = contents(8, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    lane.write(0, &pattern(SIZE, 1), soon()).unwrap();
    let mut window = lender.window();
    window.rkey ^= 0x5555;
    lender.attach_to(&mut lane, window);
    assert!(matches!(read(&mut lane, 0), Err(DataError::Refused { .. })));
    assert!(lane.is_broken());
    assert!(matches!(lane.write(0, &[1; SIZE], soon()), Err(DataError::Refused { .. })));

    lender.attach_anew(&mut lane);
    assert_eq!(read(&mut lane, 0).unwrap(), pattern(SIZE, 1));
    // A write that was refused has not arrived.
    lender.attach_to(&mut lane, window);
    assert!(matches!(lane.write(0, &pattern(SIZE, 2), soon()), Err(DataError::Refused { .. })));
    lender.attach_anew(&mut lane);
    assert_eq!(read(&mut lane, 0).unwrap(), pattern(SIZE, 2));
}

#[test]
fn between_renew_and_resume_nothing_goes() {
    let contents = contents(8, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    lane.write(0, &pattern(SIZE, 1), soon()).unwrap();
    lane.renew().unwrap();
    assert!(lane.is_broken());
    assert!(matches!(read(&mut lane, 0), Err(DataError::Detached)));
    assert!(matches!(lane.write(0, &[1; SIZE], soon()), Err(DataError::Detached)));
    lender.attach_anew(&mut lane);
    assert_eq!(read(&mut lane, 0).unwrap(), pattern(SIZE, 1));
}

#[test]
fn an_attach_that_breaks_too_loses_nothing() {
    let contents = contents(8, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach_with(&contents, HASTY);
    lender.hang_up();
    assert!(lane.write(0, &pattern(3 * SIZE, 2), soon()).is_err());
    for _ in 0..3 {
        let raw = lane.renew().unwrap();
        let remote = lender.accept(&raw.endpoint());
        raw.connect(&remote, HASTY).unwrap();
        lender.hang_up();
        assert!(matches!(lane.resume(lender.window(), long_hence(), soon()), Err(DataError::ProviderSilent)));
        assert!(lane.is_broken());
    }
    // Not connected at all.
    lane.renew().unwrap();
    assert!(lane.resume(lender.window(), long_hence(), soon()).is_err());
    assert!(lane.is_broken());
    lender.attach_anew(&mut lane);
    let mut out = vec![0; 3 * SIZE];
    lane.read(0, &mut out, soon()).unwrap();
    assert!(out == pattern(3 * SIZE, 2));
}

#[test]
fn what_a_lost_lane_leaves_open_is_unknown() {
    let contents = contents(8, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut keeper = lender.attach(&contents);
    keeper.write(0, &pattern(4 * SIZE, 1), soon()).unwrap();
    let mut lane = lender.attach_with(&contents, HASTY);
    drop(lender.take_qp(1));
    assert!(lane.write(2 * SIZE as u64, &pattern(4 * SIZE, 2), soon()).is_err());
    drop(lane);
    assert!(!contents.freshness.is_known());

    // Old, new or torn: here it is old, or empty, or torn.
    assert_eq!(read(&mut keeper, 2).unwrap(), pattern(4 * SIZE, 1)[2 * SIZE..3 * SIZE]);
    assert!(matches!(read(&mut keeper, 5), Err(DataError::FreshnessUnknown { block: 5 })));
    lender.flip(3, 1000);
    assert!(matches!(read(&mut keeper, 3), Err(DataError::Torn { block: 3 })));
    // And can be written anew.
    keeper.write(2 * SIZE as u64, &pattern(4 * SIZE, 3), soon()).unwrap();
    assert_eq!(read(&mut keeper, 3).unwrap(), pattern(4 * SIZE, 3)[SIZE..2 * SIZE]);
    assert!(contents.freshness.is_known());
}
