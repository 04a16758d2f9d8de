//! What the tests play with: a provider in this process, an auth daemon that does as it is told, and
//! borrowers with lanes of their own. Sessions, packets and memory are the real ones.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod daemon;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes};
use overbank_fabric::channel::{self, CallError, Caller};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{BootId, CorrelationId, LeaseId, Nonce};
use overbank_fabric::message::{
    Attach, Call, Carve, Extend, Fence, Offer, Refusal, RefusalCode, Reply, Role, TrustEntry, TrustState,
};
use overbank_fabric::receipt::{EndReason, Receipt};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope, Token};
use overbank_provider::backend::{Backend, Fault, RemoteKey, Verbs};
use overbank_provider::clock::{BootTime, SystemClock};
use overbank_provider::keeper::Keeper;
use overbank_provider::known_authd::KnownAuthd;
use overbank_provider::own_key::OwnKey;
use overbank_provider::pool::Pool;
use overbank_provider::session::{Facts, Link, News, SessionError};
use overbank_provider::table::{Table, Terms};
use overbank_verbs::{
    Backing, Device, DeviceOptions, Endpoint, Lane, Memory, Mtu, Op, Retry, SlotId, Transfer, WcStatus,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(crate) const POOL: usize = 4 << 20;
pub(crate) const BLOCK: u32 = 4096;
pub(crate) const STRIDE: usize = 4128;
/// How late a lease may end here, in µs: the promise is 100 ms, on a machine that is not busy with other tests.
pub(crate) const LATE_US: u64 = 1_000_000;
/// No wait in a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The device that all of it runs on: OVERBANK_TEST_DEVICE, or the soft one.
pub(crate) fn device_name() -> String {
    std::env::var("OVERBANK_TEST_DEVICE").unwrap_or_else(|_| "soft".to_owned())
}

/// `soft` or `rxe`, as a row of an attack has it.
pub(crate) fn device_kind() -> &'static str {
    if device_name() == "soft" { "soft" } else { "rxe" }
}

/// How much slower all is than on the soft device: with a real one, these tests run in a virtual machine.
pub(crate) fn pace() -> u64 {
    if device_name() == "soft" { 1 } else { 3 }
}

pub(crate) fn device() -> Device {
    let options = DeviceOptions { spin: Duration::from_micros(20), mtu: Mtu::Mtu4096, ..DeviceOptions::new(HERE) };
    Device::open(&device_name(), &options).expect("the device opens")
}

pub(crate) fn lease(number: u8) -> LeaseId {
    LeaseId([number; 16])
}

pub(crate) fn tick_in(ms: u64) -> Tick {
    BootTime::now().tick().after_ms(ms)
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never came: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

// -- the auth daemon --------------------------------------------------------------------------------------------------

/// What it has heard.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) offers: Vec<Offer>,
    pub(crate) heartbeats: usize,
    pub(crate) receipts: Vec<Signed<Receipt>>,
    pub(crate) joined: usize,
}

/// How it behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Trusts,
    /// Pending until it has joined.
    Pending,
    Revoked,
}

pub(crate) struct Authd {
    pub(crate) identity: Arc<Identity>,
    pub(crate) address: SocketAddr,
    pub(crate) heard: Arc<Mutex<Heard>>,
    pub(crate) mood: Arc<Mutex<Mood>>,
    /// A caller for each session whose offer was accepted.
    sessions: mpsc::UnboundedReceiver<Caller>,
    current: Option<Caller>,
    serving: JoinHandle<()>,
}

impl Authd {
    pub(crate) async fn start() -> Self {
        Self::start_as(Arc::new(Identity::generate()), SocketAddr::new(HERE, 0)).await
    }

    pub(crate) async fn start_as(identity: Arc<Identity>, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("listens");
        let address = listener.local_addr().expect("bound");
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mood = Arc::new(Mutex::new(Mood::Trusts));
        let (accepted, sessions) = mpsc::unbounded_channel();
        let serving = tokio::spawn({
            let (identity, heard, mood) = (Arc::clone(&identity), Arc::clone(&heard), Arc::clone(&mood));
            async move {
                // Dropped, and with it every session, when the task is aborted.
                let mut served = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (identity, heard, mood) = (Arc::clone(&identity), Arc::clone(&heard), Arc::clone(&mood));
                    served.spawn(serve_one(stream, identity, heard, mood, accepted.clone()));
                }
            }
        });
        Self { identity, address, heard, mood, sessions, current: None, serving }
    }

    /// Waits for a (new) session.
    pub(crate) async fn session(&mut self) {
        self.current = Some(timeout(PATIENCE, self.sessions.recv()).await.expect("a session").expect("a session"));
    }

    pub(crate) async fn order(&self, call: Call) -> Result<Reply, Refusal> {
        let caller = self.current.as_ref().expect("a session");
        match timeout(PATIENCE, caller.call(CorrelationId::random(), 10_000, call)).await.expect("an answer") {
            Ok(reply) => Ok(reply),
            Err(CallError::Refused(refusal)) => Err(refusal),
            Err(CallError::Channel(error)) => panic!("{error}"),
        }
    }

    /// Dies: the listener and every session.
    pub(crate) async fn die(self) -> (Arc<Identity>, SocketAddr) {
        self.serving.abort();
        let _ = self.serving.await;
        (self.identity, self.address)
    }

    pub(crate) fn receipts(&self, provider: &PublicKey) -> Vec<Receipt> {
        let heard = self.heard.lock().expect("unpoisoned");
        heard.receipts.iter().map(|receipt| receipt.open(provider).expect("signed by the provider")).collect()
    }

    pub(crate) async fn receipt(&self, provider: &PublicKey, of: LeaseId) -> Receipt {
        until("a receipt", || self.receipts(provider).iter().any(|receipt| receipt.lease == of)).await;
        self.receipts(provider).into_iter().find(|receipt| receipt.lease == of).expect("just seen")
    }
}

async fn serve_one(
    stream: TcpStream,
    identity: Arc<Identity>,
    heard: Arc<Mutex<Heard>>,
    mood: Arc<Mutex<Mood>>,
    accepted: mpsc::UnboundedSender<Caller>,
) {
    let Ok((channel, peer)) = channel::accept(stream, &identity).await else { return };
    assert_eq!(peer.party, Party::Provider);
    let (caller, mut incoming, driver) = channel.multiplex(64);
    let answering = async {
        while let Some((request, answer)) = incoming.next().await {
            let outcome = hear(request.call, peer.key, &heard, &mood, || drop(accepted.send(caller.clone())));
            answer.send(outcome).await;
        }
    };
    tokio::select! { _ = driver => {}, () = answering => {} }
}

fn hear(
    call: Call,
    key: PublicKey,
    heard: &Mutex<Heard>,
    mood: &Mutex<Mood>,
    offered: impl FnOnce(),
) -> Result<Reply, Refusal> {
    let (mut heard, mut mood) = (heard.lock().expect("unpoisoned"), mood.lock().expect("unpoisoned"));
    let refused = |code| Err(Refusal::new(code, "as the test says"));
    let you = |state| {
        let (fingerprint, role) = (key.fingerprint(), (state == TrustState::Trusted).then_some(Role::Provider));
        Ok(Reply::You(TrustEntry { key, fingerprint, state, role, tenant: None, last_seen_from: None, name: None }))
    };
    match (call, *mood) {
        (Call::WhoAmI, Mood::Pending) => you(TrustState::Pending),
        (Call::WhoAmI, _) => you(TrustState::Trusted),
        (Call::Join(join), _) if join.secret == [5; 16] => {
            heard.joined += 1;
            *mood = Mood::Trusts;
            you(TrustState::Trusted)
        }
        (Call::Join(_), _) => refused(RefusalCode::BadInvitation),
        (_, Mood::Pending) => refused(RefusalCode::Pending),
        (_, Mood::Revoked) => refused(RefusalCode::Revoked),
        (Call::Offer(offer), Mood::Trusts) => {
            heard.offers.push(offer);
            offered();
            Ok(Reply::Done)
        }
        (Call::Heartbeat(_), Mood::Trusts) => {
            heard.heartbeats += 1;
            Ok(Reply::Done)
        }
        (Call::Ended(receipt), Mood::Trusts) => {
            heard.receipts.push(receipt);
            Ok(Reply::Done)
        }
        _ => refused(RefusalCode::Invalid),
    }
}

// -- the provider -----------------------------------------------------------------------------------------------------

pub(crate) struct Provider<B: Backend = Verbs> {
    pub(crate) backend: Arc<B>,
    pub(crate) keeper: Keeper<B>,
    pub(crate) key: PublicKey,
    pub(crate) boot: BootId,
    pub(crate) news: Arc<Mutex<Vec<News>>>,
    pub(crate) link: JoinHandle<SessionError>,
    _state: tempfile::TempDir,
}

impl Provider {
    pub(crate) fn start(authd: &Authd) -> Self {
        Self::start_with(authd, Arc::new(Identity::generate()), None, |verbs| verbs)
    }
}

impl<B: Backend> Provider<B> {
    pub(crate) fn start_with(
        authd: &Authd,
        identity: Arc<Identity>,
        invitation: Option<[u8; 16]>,
        wrap: impl FnOnce(Verbs) -> B,
    ) -> Self {
        let memory = Memory::map(POOL, Backing::Ordinary).expect("4 MiB");
        let pool = Pool::new(POOL as u64, 4096);
        let boot = BootId::random();
        let terms = Terms { identity: Arc::clone(&identity), boot, max_lease_ms: 3_600_000 };
        let device = device();
        let facts = Facts { boot, pool_bytes: pool.bytes(), page_bytes: pool.page_bytes(), device: device.describe() };
        let backend = Arc::new(wrap(Verbs::new(device, memory).expect("a completion queue")));
        let keeper = Keeper::start(Table::new(terms, pool), Arc::clone(&backend), SystemClock).expect("threads");
        let state = tempfile::tempdir().expect("a directory");
        let known = KnownAuthd::load(Some(state.path()), &[]).expect("empty");
        let key = identity.public();
        let news = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&news);
        let link = Link {
            authd: authd.address.to_string(),
            known,
            key: OwnKey::fleeting(identity),
            invitation: invitation.map(zeroize::Zeroizing::new),
            keeper: keeper.clone(),
            facts,
        };
        let link = tokio::spawn(link.run(move |what| tell.lock().expect("unpoisoned").push(what)));
        Self { backend, keeper, key, boot, news, link, _state: state }
    }
}

/// An auth daemon and a provider that are connected.
pub(crate) async fn connected() -> (Authd, Provider) {
    let mut authd = Authd::start().await;
    let provider = Provider::start(&authd);
    authd.session().await;
    (authd, provider)
}

pub(crate) fn carve(boot: BootId, id: LeaseId, tenant: &str, blocks: u64, ms: u64) -> Call {
    let deadline = Deadline { boot, tick: tick_in(ms) };
    Call::Carve(Carve { lease: id, tenant: tenant.parse().expect("a name"), blocks, block: BLOCK, deadline })
}

pub(crate) fn fence(id: LeaseId) -> Call {
    Call::Fence(Fence { lease: id, reason: EndReason::Released })
}

pub(crate) fn extend(boot: BootId, id: LeaseId, ms: u64) -> Call {
    Call::Extend(Extend { lease: id, deadline: Deadline { boot, tick: tick_in(ms) } })
}

type BeforeWipe = Box<dyn Fn(&Verbs, Range<u64>) + Send + Sync>;

/// The real device and memory, with a test's hands in between.
pub(crate) struct Hooked {
    pub(crate) verbs: Verbs,
    /// Called before bytes are overwritten.
    before_wipe: BeforeWipe,
    /// No region can be deregistered any more.
    pub(crate) broken: AtomicBool,
}

impl Hooked {
    pub(crate) fn before_wipe(hook: impl Fn(&Verbs, Range<u64>) + Send + Sync + 'static) -> impl FnOnce(Verbs) -> Self {
        |verbs| Self { verbs, before_wipe: Box::new(hook), broken: AtomicBool::new(false) }
    }
}

impl Backend for Hooked {
    type Domain = <Verbs as Backend>::Domain;
    type Region = <Verbs as Backend>::Region;
    type Queue = <Verbs as Backend>::Queue;

    fn open_domain(&self) -> Result<Self::Domain, Fault> {
        self.verbs.open_domain()
    }
    fn register(&self, domain: &Self::Domain, bytes: Range<u64>, rights: Rights) -> Result<Self::Region, Fault> {
        self.verbs.register(domain, bytes, rights)
    }
    fn remote_key(&self, region: &Self::Region) -> RemoteKey {
        self.verbs.remote_key(region)
    }
    fn reach(&self, remote: &Endpoint) -> Result<(), Fault> {
        self.verbs.reach(remote)
    }
    fn create_queue(&self, domain: &Self::Domain) -> Result<Self::Queue, Fault> {
        self.verbs.create_queue(domain)
    }
    fn connect(&self, queue: &Self::Queue, remote: &Endpoint, rights: Rights) -> Result<Endpoint, Fault> {
        self.verbs.connect(queue, remote, rights)
    }
    fn destroy(&self, queue: Self::Queue) -> Result<(), Fault> {
        self.verbs.destroy(queue)
    }
    fn deregister(&self, region: Self::Region) -> Result<(), Fault> {
        match self.broken.load(Ordering::Acquire) {
            true => Err(Fault::new("deregistering a region", "the device does not answer")),
            false => self.verbs.deregister(region),
        }
    }
    fn wipe(&self, bytes: Range<u64>) -> Result<(), Fault> {
        (self.before_wipe)(&self.verbs, bytes.clone());
        self.verbs.wipe(bytes)
    }
    fn first_nonzero(&self, bytes: Range<u64>) -> Result<Option<u64>, Fault> {
        self.verbs.first_nonzero(bytes)
    }
}

// -- a borrower -------------------------------------------------------------------------------------------------------

pub(crate) struct Borrower {
    pub(crate) identity: Identity,
    pub(crate) lane: Lane,
    pub(crate) slots: Vec<SlotId>,
    pub(crate) answer: Option<AttachAnswer>,
}

impl Borrower {
    pub(crate) fn new(device: &Device) -> Self {
        let mut lane = Lane::new(device, 16, STRIDE).expect("a lane");
        let slots = std::iter::from_fn(|| lane.take()).collect();
        Self { identity: Identity::generate(), lane, slots, answer: None }
    }

    pub(crate) fn scope(&self, boot: BootId, id: LeaseId, blocks: u64, ms: u64) -> Scope {
        let deadline = Deadline { boot, tick: tick_in(ms) };
        let (rights, holder) = (Rights::READ_WRITE, self.identity.public());
        Scope { lease: id, deadline, first_block: 0, blocks, rights, holder }
    }

    pub(crate) fn request(&self, provider: &PublicKey, boot: BootId, token: &Token) -> Signed<AttachRequest> {
        let request = AttachRequest {
            token: token.hash(),
            lanes: vec![EndpointBytes(self.lane.endpoint().to_bytes())],
            provider: *provider,
            boot,
            nonce: Nonce::random(),
        };
        Signed::new(&request, &self.identity)
    }

    /// Attaches with the auth daemon's own grant for the whole lease.
    pub(crate) async fn attach<B: Backend>(
        &mut self,
        authd: &Authd,
        provider: &Provider<B>,
        id: LeaseId,
        blocks: u64,
        ms: u64,
    ) -> Result<(), Refusal> {
        let token = Token::grant(&self.scope(provider.boot, id, blocks, ms), &authd.identity);
        self.attach_with(authd, provider, id, token).await
    }

    pub(crate) async fn attach_with<B: Backend>(
        &mut self,
        authd: &Authd,
        provider: &Provider<B>,
        id: LeaseId,
        token: Token,
    ) -> Result<(), Refusal> {
        self.attach_as(authd, &provider.key, provider.boot, id, token).await
    }

    /// As [`attach`](Self::attach), to a provider in another process.
    pub(crate) async fn attach_to(
        &mut self,
        authd: &Authd,
        provider: &PublicKey,
        boot: BootId,
        id: LeaseId,
        blocks: u64,
        ms: u64,
    ) -> Result<(), Refusal> {
        let token = Token::grant(&self.scope(boot, id, blocks, ms), &authd.identity);
        self.attach_as(authd, provider, boot, id, token).await
    }

    async fn attach_as(
        &mut self,
        authd: &Authd,
        provider: &PublicKey,
        boot: BootId,
        id: LeaseId,
        token: Token,
    ) -> Result<(), Refusal> {
        if self.answer.is_some() {
            self.lane.renew().expect("renews");
            self.finish();
        }
        let request = self.request(provider, boot, &token);
        let expected = request.hash();
        let reply = authd.order(Call::Bind(Attach { lease: id, token, request })).await?;
        let Reply::Attached(answer) = reply else { panic!("{reply:?}") };
        let answer = answer.open(provider).expect("signed by the provider");
        assert_eq!((answer.request, answer.lanes.len()), (expected, 1));
        self.connect(&Endpoint::from_bytes(&answer.lanes[0].0).expect("an endpoint"));
        self.answer = Some(answer);
        Ok(())
    }

    pub(crate) fn connect(&mut self, remote: &Endpoint) {
        let retry = Retry { timeout: Duration::from_millis(20), count: 5 };
        self.lane.connect(remote, retry).expect("connects");
    }

    /// Polls until nothing is in flight; the last status.
    pub(crate) fn finish(&mut self) -> WcStatus {
        let (mut done, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while self.lane.in_flight() > 0 {
            assert!(self.lane.wait(deadline).expect("the device works"), "a transfer never ended");
            self.lane.poll(&mut done).expect("the device works");
        }
        done.last().map_or(WcStatus::SUCCESS, |done| done.status)
    }

    pub(crate) fn transfer(&self, slot: usize, op: Op, len: usize, remote_address: u64, rkey: u32) -> Transfer {
        Transfer { slot: self.slots[slot], op, len, remote_address, rkey }
    }

    /// WRITEs one value to an address.
    pub(crate) fn write_to(&mut self, remote_address: u64, rkey: u32, value: u8, len: usize) -> WcStatus {
        self.lane.bytes_mut(self.slots[0]).expect("held").fill(value);
        let transfer = self.transfer(0, Op::Write, len, remote_address, rkey);
        self.lane.post(&[transfer]).expect("posts");
        self.finish()
    }

    /// WRITEs one value all over a block of the attached range.
    pub(crate) fn write(&mut self, block: u64, value: u8) -> WcStatus {
        let (address, rkey) = self.block(block);
        self.write_to(address, rkey, value, STRIDE)
    }

    pub(crate) fn read(&mut self, block: u64) -> Result<Vec<u8>, WcStatus> {
        let (address, rkey) = self.block(block);
        let transfer = self.transfer(0, Op::Read, STRIDE, address, rkey);
        self.lane.post(&[transfer]).expect("posts");
        match self.finish() {
            WcStatus::SUCCESS => Ok(self.lane.bytes(self.slots[0]).expect("held").to_vec()),
            status => Err(status),
        }
    }

    /// Address and key of a block of the attached range.
    pub(crate) fn block(&self, block: u64) -> (u64, u32) {
        let answer = self.answer.as_ref().expect("attached");
        (answer.address + block * u64::from(answer.stride), answer.rkey)
    }
}

/// What a flood has done.
pub(crate) struct Flooded {
    /// Batches of WRITEs that succeeded.
    pub(crate) batches: u64,
    /// When the last of them did.
    pub(crate) last: BootTime,
}

/// WRITEs ever new bytes all over the attached range until told to stop; through a broken queue pair too, by a fresh
/// one to the same endpoint.
pub(crate) fn flood(mut borrower: Borrower, stop: &AtomicBool) -> Flooded {
    let remote = Endpoint::from_bytes(&borrower.answer.as_ref().expect("attached").lanes[0].0).expect("an endpoint");
    let (mut flooded, mut value) = (Flooded { batches: 0, last: BootTime(0) }, 1_u8);
    while !stop.load(Ordering::Acquire) {
        let batch: Vec<_> = (0..borrower.slots.len())
            .map(|slot| {
                value = value.checked_add(1).unwrap_or(1);
                let (address, rkey) = borrower.block(slot as u64);
                borrower.lane.bytes_mut(borrower.slots[slot]).expect("held").fill(value);
                borrower.transfer(slot, Op::Write, STRIDE, address, rkey)
            })
            .collect();
        borrower.lane.post(&batch).expect("posts");
        if borrower.finish() == WcStatus::SUCCESS {
            flooded.batches += 1;
            flooded.last = BootTime::now();
        } else {
            borrower.lane.renew().expect("renews");
            borrower.finish();
            borrower.connect(&remote);
        }
    }
    flooded
}

/// All of the pool's bytes.
pub(crate) fn snapshot(verbs: &Verbs) -> Vec<u8> {
    let mut bytes = vec![0xee; verbs.memory().len()];
    verbs.memory().copy_out(0, &mut bytes).expect("in range");
    bytes
}

pub(crate) fn is_clean(verbs: &Verbs) -> bool {
    verbs.memory().first_nonzero(0..verbs.memory().len()).expect("in range").is_none()
}
