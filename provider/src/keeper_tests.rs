use std::sync::Arc;
use std::time::Duration;

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::message::{Carve, Extend, Fence, Refusal, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Receipt, Step};
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::attach::Admission;
use crate::clock::{BootTime, SystemClock};
use crate::double::{Call, Double, endpoint};
use crate::keeper::Keeper;
use crate::pool::Pool;
use crate::table::{Table, Terms};

const BOOT: BootId = BootId([7; 16]);
const POOL: u64 = 1 << 16;
/// No wait is longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How late an end may begin here: the promise is 100 ms, on a machine that is not busy with other tests.
const LATE_US: u64 = 1_000_000;

fn lease(number: u8) -> LeaseId {
    LeaseId([number; 16])
}

fn deadline(ms: u64) -> Deadline {
    Deadline { boot: BOOT, tick: BootTime::now().tick().after_ms(ms) }
}

async fn keeper(backend: &Arc<Double>, leases: &[(u8, &str, u64)]) -> (Keeper<Double>, Identity) {
    let identity = Identity::from_seed(&[42; 32]);
    let terms = Terms { identity: Arc::new(Identity::from_seed(&[42; 32])), boot: BOOT, max_lease_ms: 60_000 };
    let table = Table::new(terms, Pool::new(POOL, 4096));
    let keeper = Keeper::start(table, Arc::clone(backend), SystemClock).expect("threads");
    for (number, tenant, ms) in leases {
        let (lease, tenant) = (lease(*number), tenant.parse().expect("a name"));
        let carve = Carve { lease, tenant, blocks: 1, block: 512, deadline: deadline(*ms) };
        assert_eq!(keeper.carve(carve).await, Ok(Reply::Done));
    }
    (keeper, identity)
}

/// Asks for an attach, which is answered some time.
fn attach(keeper: &Keeper<Double>, number: u8) -> JoinHandle<Result<Reply, Refusal>> {
    let holder = Identity::from_seed(&[number; 32]).public();
    let (lease, deadline, rights) = (lease(number), deadline(30_000), Rights::READ_WRITE);
    let scope = Scope { lease, deadline, first_block: 0, blocks: 1, rights, holder };
    let remotes = vec![endpoint(number.into()), endpoint(100 + u32::from(number))];
    let nonce = Nonce([number; 16]);
    let admission = Admission { scope, root: true, hands: vec![scope.holder], remotes, request: [0; 32], nonce };
    let (keeper, until) = (keeper.clone(), BootTime::now().after_ms(30_000));
    tokio::spawn(async move { keeper.bind(admission, until).await })
}

async fn receipt(keeper: &Keeper<Double>, identity: &Identity, number: u8) -> Receipt {
    let come = async {
        loop {
            let all = keeper.receipts(None, usize::MAX).await;
            if let Some((_, receipt)) = all.into_iter().find(|(id, _)| *id == lease(number)) {
                return receipt.open(&identity.public()).expect("signed by the provider");
            }
            keeper.receipt_made().await;
        }
    };
    timeout(PATIENCE, come).await.expect("a receipt")
}

fn assert_ended_in_time(receipt: &Receipt) {
    assert!(receipt.is_complete() && receipt.reason == EndReason::Expired, "{receipt:?}");
    assert!(receipt.steps[Step::Deregistered as usize].at_us - receipt.due_us < LATE_US, "{receipt:?}");
}

/// The refusal that it was answered.
async fn code(attach: JoinHandle<Result<Reply, Refusal>>) -> Option<RefusalCode> {
    let answer = timeout(PATIENCE, attach).await.expect("an answer").expect("no panic");
    answer.err().map(|refusal| refusal.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_address_is_being_reached_its_lease_ends_in_time() {
    let backend = Arc::new(Double::new(POOL as usize));
    let (keeper, identity) = keeper(&backend, &[(1, "a", 500)]).await;
    backend.hang(Some(Call::Reach));
    let attach = attach(&keeper, 1);
    backend.until_hanging(1);
    assert_ended_in_time(&receipt(&keeper, &identity, 1).await);
    backend.hang(None);
    assert_eq!(code(attach).await, Some(RefusalCode::LeaseEnded));
    assert!(backend.world().connected.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_attach_is_slow_the_leases_of_others_that_wait_end_in_time() {
    let backend = Arc::new(Double::new(POOL as usize));
    let leases = [(1, "a", 30_000), (2, "b", 500), (3, "c", 30_000)];
    let (keeper, identity) = keeper(&backend, &leases).await;
    backend.hang(Some(Call::Connect));
    let slow = attach(&keeper, 1);
    backend.until_hanging(1);
    let (expiring, fenced) = (attach(&keeper, 2), attach(&keeper, 3));
    assert_ended_in_time(&receipt(&keeper, &identity, 2).await);
    assert_eq!(code(expiring).await, Some(RefusalCode::LeaseEnded));
    let order = Fence { lease: lease(3), reason: EndReason::Released };
    assert_eq!(timeout(PATIENCE, keeper.fence(order)).await.expect("fenced"), Ok(Reply::Done));
    assert_eq!(code(fenced).await, Some(RefusalCode::LeaseEnded));
    backend.hang(None);
    assert_eq!(code(slow).await, None);
    let connected: Vec<_> = backend.world().connected.iter().map(|remote| remote.qpn).collect();
    assert_eq!(connected, [1, 101], "no other was served");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_under_way_at_the_end_costs_the_queue_pair_that_is_being_connected() {
    let backend = Arc::new(Double::new(POOL as usize));
    let (keeper, identity) = keeper(&backend, &[(1, "a", 500)]).await;
    backend.hang(Some(Call::Connect));
    let attach = attach(&keeper, 1);
    backend.until_hanging(1);
    // The end has begun when an extension is refused.
    let extend = Extend { lease: lease(1), deadline: Deadline { boot: BOOT, tick: Tick(0) } };
    let begun = async { while keeper.extend(extend).await.is_ok() {} };
    timeout(PATIENCE, begun).await.expect("ends");
    backend.hang(None);
    assert_eq!(code(attach).await, Some(RefusalCode::LeaseEnded));
    assert!(receipt(&keeper, &identity, 1).await.is_complete());
    let connected: Vec<_> = backend.world().connected.iter().map(|remote| remote.qpn).collect();
    assert_eq!(connected, [1], "and not 101");
}
