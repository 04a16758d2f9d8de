//! A thousand tenants on one soft device: each moves its own bytes at its own pace, and idle ones cost only memory.
#![allow(missing_docs)]

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use overbank_verbs::{
    Access, Backing, Completion, CompletionQueue, Device, DeviceOptions, Memory, MemoryRegion, Op, ProtectionDomain,
    QpCaps, QueuePair, Retry, WcStatus, WorkRequest,
};

const TENANTS: usize = 1000;
const LEN: usize = 64 << 10;
const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 15 };
const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);

/// They measure what the process has and does.
static ALONE: Mutex<()> = Mutex::new(());

fn open() -> Device {
    let options = DeviceOptions { port: Some(0), ..DeviceOptions::new("127.0.0.1".parse().unwrap()) };
    Device::open("soft", &options).unwrap()
}

/// What one tenant has on both sides. The lender's part of the memory is the tenant's alone.
struct Tenant {
    asks: QueuePair,
    near: MemoryRegion,
    _lends: QueuePair,
    far: MemoryRegion,
}

struct Crowd {
    tenants: Vec<Tenant>,
    done: CompletionQueue,
    near: Arc<Memory>,
    far: Arc<Memory>,
    _domain: ProtectionDomain,
    user: Device,
    lender: Device,
}

fn range(tenant: usize) -> Range<usize> {
    tenant * LEN..(tenant + 1) * LEN
}

impl Crowd {
    fn new() -> Self {
        let (user, lender) = (open(), open());
        let [near, far] = [(); 2].map(|()| Arc::new(Memory::map(TENANTS * LEN, Backing::Ordinary).unwrap()));
        let (domain, done) = (user.alloc_pd().unwrap(), user.create_cq(4 * TENANTS).unwrap());
        let caps = QpCaps { send_queue: 4, outstanding_reads: 16 };
        let tenants = (0..TENANTS).map(|tenant| {
            let (pd, cq) = (lender.alloc_pd().unwrap(), lender.create_cq(1).unwrap());
            let lends = pd.create_qp(&cq, QpCaps { send_queue: 1, ..caps }).unwrap();
            let asks = domain.create_qp(&done, caps).unwrap();
            asks.connect(&lends.endpoint(), Access::empty(), RETRY).unwrap();
            lends.connect(&asks.endpoint(), RIGHTS, RETRY).unwrap();
            let access = Access::LOCAL_WRITE | RIGHTS;
            let far = pd.register(&far, range(tenant), access).unwrap();
            let near = domain.register(&near, range(tenant), Access::LOCAL_WRITE).unwrap();
            Tenant { asks, near, _lends: lends, far }
        });
        Self { tenants: tenants.collect(), done, near, far, _domain: domain, user, lender }
    }

    fn post(&self, tenant: usize, op: Op) {
        let Tenant { asks, near, far, .. } = &self.tenants[tenant];
        let (remote_address, rkey) = (far.address(), far.rkey());
        let id = tenant as u64;
        asks.post(&[WorkRequest { id, op, region: near, offset: 0, len: LEN, remote_address, rkey }]).unwrap();
    }

    /// Waits until `each` has had what is done so many times.
    fn wait(&self, count: usize, mut each: impl FnMut(&Completion)) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let (mut seen, mut done) = (0, Vec::new());
        while seen < count {
            assert!(self.done.wait(deadline).unwrap(), "{seen} of {count} in time: {:?}", self.user.counters());
            self.done.poll(usize::MAX, &mut done).unwrap();
            for completion in done.drain(..) {
                assert_eq!(completion.status, WcStatus::SUCCESS, "tenant {}", completion.id);
                seen += 1;
                each(&completion);
            }
        }
    }
}

/// Bytes that no other tenant or round has.
fn pattern(round: u64) -> Vec<u8> {
    (0..TENANTS * LEN / 8)
        .flat_map(|at| (at as u64 ^ round << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

#[test]
fn a_thousand_tenants_move_their_own_bytes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let crowd = Crowd::new();
    let begin = Instant::now();
    for round in 0..2 {
        let sent = pattern(round);
        crowd.near.copy_in(0, &sent).unwrap();
        (0..TENANTS).for_each(|tenant| crowd.post(tenant, Op::Write));
        crowd.wait(TENANTS, |_| ());
        let mut got = vec![0; sent.len()];
        crowd.far.copy_out(0, &mut got).unwrap();
        assert!(got == sent, "round {round}: a WRITE went elsewhere");
        crowd.near.wipe(0..sent.len()).unwrap();
        (0..TENANTS).for_each(|tenant| crowd.post(tenant, Op::Read));
        crowd.wait(TENANTS, |_| ());
        crowd.near.copy_out(0, &mut got).unwrap();
        assert!(got == sent, "round {round}: a READ brought other bytes");
    }
    println!("{} transfers of {LEN} bytes in {:.2?}", 4 * TENANTS, begin.elapsed());
    println!("user: {:?}", crowd.user.counters());
    println!("lender: {:?}", crowd.lender.counters());
}

#[test]
fn each_of_a_thousand_tenants_gets_its_share() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let crowd = Crowd::new();
    let mut counts = vec![0_usize; TENANTS];
    let op = |tenant: usize| if tenant.is_multiple_of(2) { Op::Read } else { Op::Write };
    (0..TENANTS).for_each(|tenant| crowd.post(tenant, op(tenant)));
    let mut done = 0;
    let begin = Instant::now();
    // Whatever is done is posted again, until each could have had ten.
    crowd.wait(11 * TENANTS, |completion| {
        let tenant = completion.id as usize;
        counts[tenant] += 1;
        done += 1;
        if done <= 10 * TENANTS {
            crowd.post(tenant, op(tenant));
        }
    });
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    println!("{least} to {most} of {done} for each of {TENANTS}, in {:.2?}", begin.elapsed());
    println!("user: {:?}", crowd.user.counters());
    println!("lender: {:?}", crowd.lender.counters());
    assert!(*least >= 3 && *most <= 40);
    // So many windows that nobody bounds together drown a socket: then most is sent twice.
    for counters in [crowd.user.counters(), crowd.lender.counters()] {
        assert!(counters.retransmitted < counters.sent / 4, "{counters:?}");
    }
}

#[test]
fn an_elephant_does_not_hold_up_a_mouse() {
    const ELEPHANT: usize = 256 << 20;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (user, lender) = (open(), open());
    let [near, far] = [(); 2].map(|()| Arc::new(Memory::map(ELEPHANT, Backing::Ordinary).unwrap()));
    far.copy_in(ELEPHANT - 8, &[7; 8]).unwrap();
    let (ours, theirs) = (user.alloc_pd().unwrap(), lender.alloc_pd().unwrap());
    let mine = ours.register(&near, 0..ELEPHANT, Access::LOCAL_WRITE).unwrap();
    let lent = theirs.register(&far, 0..ELEPHANT, RIGHTS | Access::LOCAL_WRITE).unwrap();
    let (remote_address, rkey) = (lent.address(), lent.rkey());
    let none = lender.create_cq(1).unwrap();
    let caps = QpCaps { send_queue: 1, outstanding_reads: 16 };
    let [elephant, mouse] = [(); 2].map(|()| {
        let done = user.create_cq(1).unwrap();
        let (asks, lends) = (ours.create_qp(&done, caps).unwrap(), theirs.create_qp(&none, caps).unwrap());
        asks.connect(&lends.endpoint(), Access::empty(), RETRY).unwrap();
        lends.connect(&asks.endpoint(), RIGHTS, RETRY).unwrap();
        (asks, done, lends)
    });
    let request =
        |len| WorkRequest { id: 1, op: Op::Read, region: &mine, offset: ELEPHANT - len, len, remote_address, rkey };
    elephant.0.post(&[request(ELEPHANT)]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut mice, mut out) = (0, Vec::new());
    // At the end of the memory, which the elephant reaches last.
    let small = WorkRequest { remote_address: remote_address + (ELEPHANT - 8) as u64, ..request(8) };
    while elephant.1.poll(1, &mut out).unwrap() == 0 {
        mouse.0.post(&[small]).unwrap();
        assert!(mouse.1.wait(deadline).unwrap());
        mouse.1.poll(1, &mut out).unwrap();
        mice += 1;
    }
    assert!(out.iter().all(|completion| completion.status == WcStatus::SUCCESS));
    let mut bytes = [0; 8];
    near.copy_out(ELEPHANT - 8, &mut bytes).unwrap();
    println!("{mice} READs of 8 bytes beside one of {ELEPHANT}");
    assert!(mice > 20 && bytes == [7; 8], "{mice} READs, {bytes:?}");
}

/// Pages of memory that the process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = status.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// How often the devices' threads have woken.
fn wakes() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let of =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key).map(|value| value.trim().to_owned()));
        (of("Name:")? == "overbank-soft").then(|| of("voluntary_ctxt_switches:")?.parse::<u64>().ok()).flatten()
    });
    let counts: Vec<_> = tasks.collect();
    assert_eq!(counts.len(), 2, "each device has its thread");
    counts.iter().sum()
}

#[test]
fn idle_tenants_cost_only_memory_and_little_of_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (user, lender) = (open(), open());
    let (near, far) = (user.alloc_pd().unwrap(), lender.alloc_pd().unwrap());
    let (done, none) = (user.create_cq(1).unwrap(), lender.create_cq(1).unwrap());
    let mut pairs = Vec::with_capacity(16 * TENANTS);
    let before = resident();
    for _ in 0..4 * TENANTS {
        let asks = near.create_qp(&done, QpCaps { send_queue: 64, outstanding_reads: 16 }).unwrap();
        let lends = far.create_qp(&none, QpCaps { send_queue: 1, outstanding_reads: 16 }).unwrap();
        asks.connect(&lends.endpoint(), Access::empty(), RETRY).unwrap();
        lends.connect(&asks.endpoint(), RIGHTS, RETRY).unwrap();
        pairs.push((asks, lends));
    }
    let each = resident().saturating_sub(before) / (2 * pairs.len());
    println!("{each} bytes of memory for each of {} queue pairs", 2 * pairs.len());
    assert!((100..4096).contains(&each), "{each} bytes for an idle queue pair");
    std::thread::sleep(Duration::from_millis(100));
    let before = wakes();
    std::thread::sleep(Duration::from_millis(400));
    let woke = wakes() - before;
    println!("woke {woke} times in 400 ms");
    assert!(woke <= 20, "{woke} times in 400 ms of nothing to do");
}
