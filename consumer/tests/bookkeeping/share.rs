//! At most 1 % of what is leased, in blocks of the default size.

use std::time::Duration;

use overbank::{AttachOptions, Client, Config, Lease, LeaseRequest};

use crate::stack::{Stack, device, noise};
use crate::{heap, resident};

const LEASED: u64 = 512 << 20;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = LEASED / BLOCK;
/// Room for it, and for the headers of its blocks.
const POOL: [&str; 2] = ["--pool", "528MiB"];
const CALL: usize = 1 << 20;
/// More than a lane's slots have, which are mapped, and not of the heap.
const SLOTS: u64 = 1 << 20;
/// Of what is leased.
const MOST: f64 = 0.01;
/// The same for the smallest blocks, of 512 bytes: a word and a bit for each, and a little.
const MOST_SMALLEST: f64 = 0.0165;

fn share(bytes: u64, leased: u64) -> String {
    format!("{bytes} bytes, {:.3} %", bytes as f64 * 100.0 / leased as f64)
}

fn attach(lease: &mut Lease) {
    lease.attach(&AttachOptions { device: device(), ..AttachOptions::default() }).expect("attached");
}

/// Writes every block once, each in a call of its own and in an order in which no two neighbours follow each other: the
/// table then has nothing that it could save in fewer bytes.
fn write_scattered(lease: &mut Lease, bytes: &[u8]) {
    for number in 0..BLOCKS {
        let block = number * 40_503 % BLOCKS;
        let from = (block as usize * 64) % (CALL - BLOCK as usize);
        lease.write(block * BLOCK, &bytes[from..from + BLOCK as usize]).expect("written");
    }
}

fn read_all(lease: &mut Lease, bytes: &[u8], buffer: &mut [u8]) {
    for offset in (0..LEASED).step_by(CALL) {
        lease.read(offset, buffer).expect("read");
        for (at, read) in buffer.chunks(BLOCK as usize).enumerate() {
            let from = ((offset / BLOCK) as usize + at) * 64 % (CALL - BLOCK as usize);
            assert!(read == &bytes[from..from + BLOCK as usize], "block {at} from {offset} on");
        }
    }
}

/// One test, so that nothing else is allocated meanwhile. The bytes that go over are the caller's and there before.
#[test]
fn a_borrower_keeps_at_most_a_hundredth_of_what_it_leases() {
    let mut stack = Stack::start();
    stack.provider = None;
    stack.provider = Some(stack.start_provider(&POOL));
    let user = stack.consumer("ann", "blue");
    let config =
        Config::new(&stack.address, &user.home).expect("an address").with_leases(user.runtime.join("overbank"));
    let (bytes, mut buffer) = (noise(CALL, 1), vec![1; CALL]);

    let (own, in_heap) = (resident::own_memory(), heap::now());
    heap::highest();
    let more = || (resident::own_memory().saturating_sub(own), (heap::now() - in_heap) as u64);
    let client = Client::connect(&config).expect("connected");
    let mut lease = client.lease(&LeaseRequest::new(LEASED, Duration::from_secs(600))).expect("room");
    attach(&mut lease);
    let (attached, attached_heap) = more();
    write_scattered(&mut lease, &bytes);
    read_all(&mut lease, &bytes, &mut buffer);
    assert!(lease.freshness_is_known());
    let (used, used_heap) = more();

    // The table is written down, and read again, as by the next process.
    let id = lease.id();
    lease.close().expect("saved");
    let mut lease = client.open_lease(id).expect("it is there");
    attach(&mut lease);
    read_all(&mut lease, &bytes, &mut buffer);
    let (again, _) = more();
    let highest = (heap::highest() - in_heap) as u64 + SLOTS;

    println!("{BLOCKS} blocks of {BLOCK} bytes on {}, all written, with one lane:", device());
    println!("  attached, none written: {}, of it heap {attached_heap}", share(attached, LEASED));
    println!("  all written and read:   {}, of it heap {used_heap}", share(used, LEASED));
    println!("  for each block:         {:.3} bytes", (used_heap - attached_heap) as f64 / BLOCKS as f64);
    println!("  opened again:           {}", share(again, LEASED));
    println!("  highest at any time:    {}", share(highest, LEASED));
    for (when, bytes) in [("in use", used), ("opened again", again), ("at its highest", highest)] {
        assert!(bytes as f64 <= LEASED as f64 * MOST, "{when}: {}", share(bytes, LEASED));
    }
    assert!(used_heap - attached_heap >= BLOCKS * 8, "what is measured is not all of the table");
    lease.release(Duration::from_secs(20)).expect("released");

    // Blocks of the smallest size have a word each too, which is more of them.
    const SMALL: u64 = 32 << 20;
    let request = LeaseRequest { block: 512, ..LeaseRequest::new(SMALL, Duration::from_secs(600)) };
    let mut lease = client.lease(&request).expect("room");
    attach(&mut lease);
    let before = heap::now();
    for offset in (0..SMALL).step_by(CALL) {
        lease.write(offset, &bytes).expect("written");
    }
    let table = (heap::now() - before) as u64;
    println!("{} blocks of 512 bytes: their table {}", SMALL / 512, share(table, SMALL));
    assert!(table as f64 <= SMALL as f64 * MOST_SMALLEST, "{}", share(table, SMALL));
    lease.release(Duration::from_secs(20)).expect("released");
}
