//! Who takes all it can get: leases, requests, the daemon's time. Others are served all the same.

use std::time::{Duration, Instant};

use overbank_authd::{Limits, Load};
use overbank_fabric::channel::{CallError, Caller};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Allowance, Call, Invite, Join, RefusalCode, Reply, Role, TenantInfo, TenantQuota};
use tokio::task::JoinSet;

use crate::daemon::{Daemon, MIB, invitation, refused, wish};
use crate::lender::Lender;

/// Sessions of one identity, each asking as much at once as it likes.
struct Hoarder {
    callers: Vec<Caller>,
    _drivers: JoinSet<()>,
}

impl Hoarder {
    async fn new(daemon: &Daemon, identity: &Identity, sessions: usize) -> Self {
        let (mut callers, mut drivers) = (Vec::new(), JoinSet::new());
        for _ in 0..sessions {
            let (caller, _, driver) = daemon.client(identity).await.into_channel().multiplex(1000);
            callers.push(caller);
            drivers.spawn(async { drop(driver.await) });
        }
        Self { callers, _drivers: drivers }
    }

    /// Asks so often in each session, all at once.
    fn ask(&self, times: usize, call: impl Fn() -> Call) -> JoinSet<Result<Reply, CallError>> {
        let mut asked = JoinSet::new();
        for caller in &self.callers {
            for _ in 0..times {
                let (caller, call) = (caller.clone(), call());
                asked.spawn(async move { caller.call(CorrelationId::random(), 30_000, call).await });
            }
        }
        asked
    }
}

async fn quota(daemon: &Daemon, tenant: &str, bytes: Allowance, leases: Allowance) -> TenantInfo {
    let tenant = tenant.parse().expect("a tenant");
    match daemon.operate(Call::TenantQuota(TenantQuota { tenant, bytes, leases })).await {
        Reply::Tenants(mut tenants) => tenants.remove(0),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_30_leases_stop_at_a_quota_that_operators_set_at_run_time() {
    let mut daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (_, mut red) = daemon.consumer("red").await;
    let (_, mut red_too) = daemon.consumer("red").await;
    let (_, mut blue) = daemon.consumer("blue").await;
    let info = quota(&daemon, "red", Allowance::AsItIs, Allowance::Most(3)).await;
    assert_eq!((info.leases, info.quota_leases, info.own), (0, Some(3), true));
    red.create(wish(4096)).await;
    red_too.create(wish(4096)).await;
    let third = red.create(wish(4096)).await;
    for client in [&mut red, &mut red_too] {
        assert_eq!(refused(client.call(Call::CreateLease(wish(1))).await), RefusalCode::Quota);
    }
    blue.create(wish(4096)).await;

    // It outlives a restart, and bytes count beside leases.
    drop((red, red_too, blue, session));
    daemon.restart().await;
    let _session = lender.connect(daemon.address).await;
    let info = quota(&daemon, "red", Allowance::Most(MIB), Allowance::Most(100)).await;
    assert_eq!((info.leases, info.quota_bytes), (3, Some(MIB)));
    let mut red = daemon.client(&daemon.approved(Role::Consumer, Some("red")).await).await;
    assert_eq!(refused(red.call(Call::CreateLease(wish(MIB))).await), RefusalCode::Quota);
    red.create(wish(4096)).await;
    quota(&daemon, "red", Allowance::AsForAll, Allowance::AsForAll).await;
    red.create(wish(MIB)).await;
    let Reply::Tenants(tenants) = daemon.operate(Call::TenantList).await else { panic!("tenants") };
    let seen: Vec<_> = tenants.iter().map(|it| (it.tenant.to_string(), it.leases, it.own)).collect();
    assert_eq!(seen, [("blue".to_owned(), 1, false), ("red".to_owned(), 5, false)]);
    assert_eq!(daemon.rejected().await["quota"], 1, "since the restart");
    let _ = third;
    println!("attack 30 -: seen leases and bytes stop at the tenant's quota, another tenant served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_30_requests_in_flight_are_shared() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let hoarding = daemon.approved(Role::Consumer, Some("red")).await;
    let victim = daemon.approved(Role::Consumer, Some("red")).await;
    let (_, mut blue) = daemon.consumer("blue").await;
    // From now on whoever asks for a lease waits for its lender.
    lender.lock().hangs = true;
    let hoarder = Hoarder::new(&daemon, &hoarding, 12).await;
    let mut asked = hoarder.ask(60, || Call::CreateLease(wish(1)));
    let mut busy = 0;
    while let Ok(Some(outcome)) = tokio::time::timeout(Duration::from_millis(1500), asked.join_next()).await {
        assert_eq!(refused(outcome.expect("no panic")), RefusalCode::Busy);
        busy += 1;
    }
    assert!((160..=180).contains(&asked.len()), "{} are in flight, {busy} were refused", asked.len());
    for client in [&mut blue, &mut daemon.client(&victim).await] {
        for _ in 0..20 {
            let begun = Instant::now();
            client.leases().await;
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
    }
    // A provider is heard, and a kill switch works.
    lender.lock().hangs = false;
    daemon.operate(Call::TrustRevoke(hoarding.public().fingerprint())).await;
    assert_eq!(daemon.rejected().await["requests-of-identity"], busy);
    println!("attack 30 -: seen one identity held to a third of the requests in flight, others served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_30_sessions_are_shared() {
    let daemon = Daemon::with(Limits { load: Load { sessions: 40, ..Load::default() }, ..Limits::default() }).await;
    let mut hoarders = Vec::new();
    for _ in 0..4 {
        hoarders.push(daemon.approved(Role::Consumer, Some("red")).await);
    }
    let blue = daemon.approved(Role::Consumer, Some("blue")).await;
    let (mut open, mut turned_away) = (Vec::new(), 0);
    for number in 0..80 {
        let mut session = daemon.client(&hoarders[number % hoarders.len()]).await;
        match session.call(Call::WhoAmI).await {
            Ok(_) => open.push(session),
            Err(CallError::Channel(_)) => turned_away += 1,
            Err(refused) => panic!("{refused:?}"),
        }
    }
    assert_eq!((open.len(), turned_away), (20, 60), "a tenant leaves half to the others");
    for _ in 0..10 {
        daemon.client(&blue).await.leases().await;
    }
    // Who is let in while the tenant has its share finds no place either, and the next one does when one is free.
    let fifth = daemon.approved(Role::Consumer, Some("red")).await;
    assert!(matches!(daemon.client(&fifth).await.call(Call::WhoAmI).await, Err(CallError::Channel(_))));
    assert_eq!(daemon.rejected().await["sessions-of-tenant"], 61);
    open.truncate(10);
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.client(&fifth).await.leases().await;
    println!("attack 30 -: seen one tenant held to half of all sessions, others let in");
}

/// What one operator looks at, again and again, keeps neither another one nor a consumer from anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_lists_without_a_pause_holds_nobody_up() {
    let daemon = Daemon::start().await;
    let code = invitation(
        daemon.operate(Call::TrustInvite(Invite { role: Role::Operator, tenant: None, ttl_ms: 60_000 })).await,
    );
    let rogue = Identity::generate();
    daemon.client(&rogue).await.call(Call::Join(Join { secret: code.secret })).await.expect("the second operator");
    let (_, mut blue) = daemon.consumer("blue").await;
    let hoarder = Hoarder::new(&daemon, &rogue, 12).await;
    let mut asked = hoarder.ask(60, || Call::TrustList);
    let mut operator = daemon.client(&daemon.operator).await;
    for _ in 0..10 {
        let begun = Instant::now();
        operator.call(Call::TrustList).await.expect("there is always a place");
        blue.leases().await;
        operator.call(Call::TenantStop("nobody".parse().expect("a tenant"))).await.expect("a switch");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    let mut busy = 0;
    while let Some(outcome) = asked.join_next().await {
        busy += u64::from(outcome.expect("no panic").is_err());
    }
    assert!(busy > 0 && daemon.rejected().await["requests-of-identity"] >= busy, "{busy} were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_30_requests_a_second_are_bounded() {
    let load = Load { requests_per_second_each: 50, ..Load::default() };
    let daemon = Daemon::with(Limits { load, ..Limits::default() }).await;
    let hoarding = daemon.approved(Role::Consumer, Some("red")).await;
    let hoarder = Hoarder::new(&daemon, &hoarding, 4).await;
    let begun = Instant::now();
    let mut answered = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        let mut asked = hoarder.ask(10, || Call::ListLeases);
        while let Some(outcome) = asked.join_next().await {
            answered += u32::from(outcome.expect("no panic").is_ok());
        }
    }
    let most = 50 + 50 * begun.elapsed().as_secs() as u32 + 50;
    assert!((50..=most).contains(&answered), "{answered} in {:?}", begun.elapsed());
    println!("attack 30 -: seen requests held to the rate of an identity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_30_who_asks_much_waits_behind_itself_alone() {
    let load = Load { requests_per_second: 50, requests_per_second_each: 10_000, ..Load::default() };
    let daemon = Daemon::with(Limits { load, ..Limits::default() }).await;
    let hoarding = daemon.approved(Role::Consumer, Some("red")).await;
    let (_, mut blue) = daemon.consumer("blue").await;
    let hoarder = Hoarder::new(&daemon, &hoarding, 3).await;
    // 170 of them are in flight, and all together get 50 a second.
    let asked = hoarder.ask(60, || Call::ListLeases);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let begun = Instant::now();
    for _ in 0..5 {
        blue.leases().await;
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(900), "five turns took {took:?}");
    drop(asked);
    println!("attack 30 -: seen tenants take turns, and a flood wait behind itself");
}
