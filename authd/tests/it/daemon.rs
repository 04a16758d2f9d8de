//! A daemon in this process, and who talks to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use overbank_authd::Limits;
use overbank_authd::server::{ServeError, Server};
use overbank_authd::state::{AuditFiles, State};
use overbank_fabric::channel::{self, CallError, Channel};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{CorrelationId, LeaseId, Nonce};
use overbank_fabric::message::{
    Approve, Call, CreateLease, Granted, Invitation, Join, LeaseInfo, RefusalCode, Reply, Role, TrustEntry,
};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) const MIB: u64 = 1 << 20;
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) operator: Identity,
    pub(crate) limits: Limits,
    files: AuditFiles,
    running: Option<Running>,
}

/// What stops it, and how it ended.
type Running = (oneshot::Sender<()>, JoinHandle<Result<(), ServeError>>);

impl Daemon {
    /// A new one, with one operator.
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let made = State::init(&directory.path().join("state")).expect("a new state");
        let address = "127.0.0.1:0".parse().expect("an address");
        let mut daemon = Self {
            address,
            directory,
            operator: Identity::generate(),
            limits,
            files: AuditFiles::default(),
            running: None,
        };
        daemon.run().await;
        let mut operator = daemon.client(&daemon.operator).await;
        operator.call(Call::Join(Join { secret: made.operator_invitation.secret })).await.expect("the first operator");
        daemon
    }

    async fn bind(&self) -> Result<Server, ServeError> {
        let mut state = State::open(&self.directory.path().join("state")).expect("the state");
        state.audit_files = self.files.clone();
        Server::bind(state, "127.0.0.1:0".parse().expect("an address"), self.limits).await
    }

    async fn run(&mut self) {
        let server = self.bind().await.expect("a free port");
        self.address = server.address();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        self.running = Some((stop, running));
    }

    /// Stops it, which must take no longer than it promises.
    pub(crate) async fn stop(&mut self) {
        let (stop, running) = self.running.take().expect("it runs");
        let _ = stop.send(());
        let stopped = timeout(Duration::from_secs(4), running).await.expect("soon");
        stopped.expect("no panic").expect("a clean end");
    }

    /// Waits until it has stopped by itself.
    pub(crate) async fn stopped(&mut self) {
        let (_stop, running) = self.running.take().expect("it runs");
        timeout(Duration::from_secs(4), running).await.expect("soon").expect("no panic").expect("a clean end");
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// Serves with these files for the audit log from now on.
    pub(crate) async fn restart_with_files(&mut self, export: Option<&Path>, witness: Option<&Path>) {
        if self.running.is_some() {
            self.stop().await;
        }
        self.files = AuditFiles { export: export.map(Path::to_owned), witness: witness.map(Path::to_owned) };
        self.run().await;
    }

    /// Why it does not serve with these, where it does not.
    pub(crate) async fn try_files(&mut self, export: Option<&Path>, witness: Option<&Path>) -> Result<(), String> {
        self.files = AuditFiles { export: export.map(Path::to_owned), witness: witness.map(Path::to_owned) };
        self.bind().await.map(|_| ()).map_err(|error| error.to_string())
    }

    pub(crate) async fn connect(&self, identity: &Identity, party: Party) -> Client {
        let stream = TcpStream::connect(self.address).await.expect("the daemon listens");
        let connecting = channel::connect(stream, identity, party, |_: &PublicKey| Ok(()));
        let (channel, _) = timeout(PATIENCE, connecting).await.expect("in time").expect("a session");
        Client { channel }
    }

    /// A connection from an address of this machine's own network, on which nothing was said yet.
    pub(crate) async fn connect_from(&self, address: [u8; 4]) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((address, 0).into()).expect("an address of this machine");
        socket.connect(self.address).await.expect("the daemon listens")
    }

    /// How often what was refused, as an operator is told.
    pub(crate) async fn rejected(&self) -> Counts {
        match self.operate(Call::Status).await {
            Reply::Status(status) => Counts(status.rejected),
            other => panic!("{other:?}"),
        }
    }

    /// Its key.
    pub(crate) async fn key(&self) -> PublicKey {
        let stream = TcpStream::connect(self.address).await.expect("the daemon listens");
        channel::connect(stream, &self.operator, Party::Client, |_| Ok(())).await.expect("a session").1.key
    }

    pub(crate) async fn client(&self, identity: &Identity) -> Client {
        self.connect(identity, Party::Client).await
    }

    /// Asks as the operator, over a session of its own.
    pub(crate) async fn operate(&self, call: Call) -> Reply {
        self.client(&self.operator).await.call(call).await.expect("an operator may")
    }

    /// Trusts somebody new.
    pub(crate) async fn approved(&self, role: Role, tenant: Option<&str>) -> Identity {
        let identity = Identity::generate();
        let party = if role == Role::Provider { Party::Provider } else { Party::Client };
        self.connect(&identity, party).await.call(Call::WhoAmI).await.expect("known now");
        let fingerprint = identity.public().fingerprint();
        let tenant = tenant.map(|name| name.parse().expect("a tenant"));
        self.operate(Call::TrustApprove(Approve { fingerprint, role, tenant })).await;
        identity
    }

    /// A new consumer, and a session of it.
    pub(crate) async fn consumer(&self, tenant: &str) -> (Identity, Client) {
        let identity = self.approved(Role::Consumer, Some(tenant)).await;
        let client = self.client(&identity).await;
        (identity, client)
    }

    pub(crate) async fn show(&self, lease: LeaseId) -> LeaseInfo {
        match self.operate(Call::ShowLease(lease)).await {
            Reply::Leases(mut leases) => leases.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a lease looks as wanted.
    pub(crate) async fn until(&self, lease: LeaseId, wanted: impl Fn(&LeaseInfo) -> bool) -> LeaseInfo {
        let waiting = async {
            loop {
                let info = self.show(lease).await;
                if wanted(&info) {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("it comes to that")
    }
}

/// What was refused how often, and 0 for all else.
#[derive(Debug)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl std::ops::Index<&str> for Counts {
    type Output = u64;

    fn index(&self, reason: &str) -> &u64 {
        self.0.get(reason).unwrap_or(&0)
    }
}

pub(crate) struct Client {
    channel: Channel<TcpStream>,
}

impl Client {
    pub(crate) async fn call(&mut self, call: Call) -> Result<Reply, CallError> {
        self.call_for(5000, call).await
    }

    pub(crate) async fn call_for(&mut self, deadline_ms: u32, call: Call) -> Result<Reply, CallError> {
        let called = self.channel.call(CorrelationId::random(), deadline_ms, call);
        timeout(PATIENCE, called).await.expect("every call is answered or its session ended")
    }

    pub(crate) async fn create(&mut self, wish: CreateLease) -> Granted {
        match self.call(Call::CreateLease(wish)).await {
            Ok(Reply::Granted(granted)) => *granted,
            other => panic!("not granted: {other:?}"),
        }
    }

    pub(crate) async fn who_am_i(&mut self) -> TrustEntry {
        match self.call(Call::WhoAmI).await {
            Ok(Reply::You(entry)) => entry,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn leases(&mut self) -> Vec<LeaseInfo> {
        match self.call(Call::ListLeases).await {
            Ok(Reply::Leases(leases)) => leases,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the session's end, which must come without a word.
    pub(crate) async fn ends(mut self) -> bool {
        timeout(Duration::from_secs(3), self.channel.receive()).await.is_ok_and(|received| received.is_err())
    }

    pub(crate) fn into_channel(self) -> Channel<TcpStream> {
        self.channel
    }
}

pub(crate) fn wish(bytes: u64) -> CreateLease {
    CreateLease { nonce: Nonce::random(), bytes, block: 4096, ttl_ms: 60_000 }
}

pub(crate) fn refused(outcome: Result<Reply, CallError>) -> RefusalCode {
    match outcome {
        Err(CallError::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn invitation(reply: Reply) -> Invitation {
    match reply {
        Reply::Invitation(invitation) => invitation,
        other => panic!("{other:?}"),
    }
}
