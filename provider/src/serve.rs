//! `serve`: set-up, the session, and the shutdown.

use std::future::pending;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_fabric::daemon::sandbox::{self, Needs};
use overbank_fabric::daemon::user::give_up_the_rest;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::BootId;
use overbank_fabric::keyfile::KeyFileError;
use overbank_fabric::message::RefusalCode;
use overbank_fabric::units::Size;
use overbank_verbs::{Backing, Device, DeviceOptions, VerbsError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::backend::{Backend, Fault, Verbs};
use crate::cli::Serve;
use crate::clock::SystemClock;
use crate::keeper::Keeper;
use crate::known_authd::{KnownAuthd, PinError};
use crate::own_key::OwnKey;
use crate::pages;
use crate::pool::Pool;
use crate::process::{self, ProcessError, StateDir};
use crate::session::{Facts, Link, News, SessionError};
use crate::table::{Table, Terms};
use crate::watch;

/// For the receipts of a shutdown to arrive.
const LAST_RECEIPTS: Duration = Duration::from_secs(2);
/// For threads to let go of the key.
const LAST_HOLDERS: Duration = Duration::from_secs(1);

/// Why there is no provider (any more).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The process or its state directory.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The pin of the auth daemon.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The pool's memory.
    #[error("no pool of {size}: {source}")]
    Pool {
        /// What was asked for.
        size: Size,
        /// The cause.
        source: VerbsError,
    },
    /// The device.
    #[error("no device: {0}")]
    Device(#[source] VerbsError),
    /// The device has nothing to give.
    #[error("the device cannot be used: {0}")]
    Backend(#[from] Fault),
    /// The device failed while it was in use.
    #[error("the device has failed, and every lease was ended; start the provider again ({} not known to be clean; the kernel takes it back)", Size(*.unclean))]
    DeviceFailed {
        /// Bytes of which some step of a lease's end failed, or for which there was no time.
        unclean: u64,
    },
    /// No local address leads to the auth daemon.
    #[error("no local address leads to {authd} ({source}): give one with --address")]
    Address {
        /// The auth daemon.
        authd: String,
        /// The cause.
        source: io::Error,
    },
    /// Threads, signals or timers.
    #[error("the system gives no {what}: {source}")]
    System {
        /// What it does not give.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The auth daemon will not have it.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A step of some lease's end failed, or there was no time for it.
    #[error("stopped with {} not known to be clean; the kernel takes it back", Size(*.bytes))]
    Unclean {
        /// How much.
        bytes: u64,
    },
}

impl ServeError {
    /// What the process exits with.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Session(SessionError::Refused { refusal, .. }) if refusal.code != RefusalCode::Invalid => 4,
            Self::Pin(PinError::Changed { .. }) | Self::Session(SessionError::Pin(PinError::Changed { .. })) => 5,
            Self::Pool { .. } => 6,
            Self::Process(_) | Self::Key(_) | Self::Pin(_) | Self::Session(SessionError::Pin(_)) => 12,
            _ => 1,
        }
    }
}

/// Lends memory until a signal comes.
///
/// # Errors
/// [`ServeError`].
pub fn serve(options: Serve) -> Result<(), ServeError> {
    process::harden(options.user.as_deref(), options.state.as_deref())?;
    let state = options.state.as_deref().map(StateDir::open).transpose()?;
    confine(&options, state.as_ref())?;
    let (key, made) = match &state {
        Some(state) => OwnKey::load(state.path())?,
        None => (OwnKey::fleeting(Arc::new(Identity::generate())), true),
    };
    let me = key.identity().public().fingerprint();
    if made {
        tracing::info!(fingerprint = %me, "made a new identity");
    }
    let vouched = [
        options.authd_fingerprint.map(|fingerprint| (fingerprint, "from --authd-fingerprint")),
        options.invitation.as_ref().map(|invitation| (invitation.authd, "from the invitation")),
    ];
    let vouched: Vec<_> = vouched.into_iter().flatten().collect();
    let known = KnownAuthd::load(state.as_ref().map(StateDir::path), &vouched)?;
    if state.is_none() && vouched.is_empty() {
        tracing::warn!(
            "the auth daemon's key is taken on trust at each start: give --authd-fingerprint or an invitation"
        );
    }

    let address = match options.address {
        Some(address) => address,
        None => {
            let authd = options.authd.clone();
            local_address(&authd).map_err(|source| ServeError::Address { authd, source })?
        }
    };
    let (port, spin, mtu) = (options.port, options.spin, options.mtu);
    let lose_per_million = options.lose_per_million();
    let before_threads = Some(give_up_the_rest as fn());
    let wanted = DeviceOptions { port, spin, mtu, lose_per_million, before_threads, ..DeviceOptions::new(address) };
    let device = Device::open(&options.device, &wanted).map_err(ServeError::Device)?;
    give_up_the_rest();
    let memory =
        pages::map(options.pages, options.pool).map_err(|source| ServeError::Pool { size: options.pool, source })?;
    let pages = match memory.backing() {
        Backing::Huge2M => "hugepages of 2MiB",
        Backing::Huge1G => "hugepages of 1GiB",
        Backing::Transparent => "transparent hugepages",
        Backing::Ordinary => "ordinary pages",
    };
    let pool = Pool::new(memory.len() as u64, memory.page_bytes() as u64);
    let facts = Facts {
        boot: if cfg!(feature = "danger-one-life") { BootId([7; 16]) } else { BootId::random() },
        pool_bytes: pool.bytes(),
        page_bytes: pool.page_bytes(),
        device: device.describe(),
    };
    let max_lease_ms = u64::try_from(options.max_lease.as_millis()).unwrap_or(u64::MAX);
    let table = Table::new(Terms { identity: Arc::clone(key.identity()), boot: facts.boot, max_lease_ms }, pool);
    let backend = Arc::new(Verbs::new(device.clone(), memory)?);
    let keeper =
        Keeper::start(table, backend, SystemClock).map_err(|source| ServeError::System { what: "threads", source })?;

    let ready =
        format!("overbank-provider ready: {me} lends {} in {pages} through {}", Size(facts.pool_bytes), facts.device);
    let news = move |news| match news {
        News::Ready => say(&ready),
        News::WaitingForApproval => say(&format!("waiting for approval: overbank trust approve {me} --role provider")),
    };
    let invitation = options.invitation.map(|invitation| Zeroizing::new(invitation.secret));
    let pool_bytes = facts.pool_bytes;
    let holders = key.holders();
    let link = Link { authd: options.authd, known, key, invitation, keeper: keeper.clone(), facts };
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServeError::System { what: "event loop", source })?
        .block_on(async {
            let failed = watch::until_failed(device.name(), watch::LOOK, || device.health());
            run(link.run(news), &keeper, pool_bytes, failed).await
        });
    // The keeper's thread ends with its last handle. The key is wiped when nobody holds it, and the process ends after that.
    drop(keeper);
    let until = Instant::now() + LAST_HOLDERS;
    while !holders.are_gone() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    served
}

/// Before there are threads: they inherit it.
fn confine(options: &Serve, state: Option<&StateDir>) -> Result<(), ServeError> {
    let authd = options.authd.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let needs = Needs {
        write: state.iter().map(|state| state.path().to_owned()).chain(Device::writes(&options.device)).collect(),
        connect: authd.into_iter().collect(),
        listen: Vec::new(),
        devices: options.device != "soft",
        memory_files: options.device.starts_with("dpdk:"),
    };
    let sandbox = sandbox::confine(options.sandbox, &needs).map_err(ProcessError::from)?;
    let user = nix::unistd::geteuid();
    tracing::info!(%user, %sandbox, "confined");
    Ok(())
}

/// The session until a signal, or until the device has failed; then the shutdown: leases fenced and cleaned, receipts
/// delivered as far as 2 s allow.
///
/// # Errors
/// [`ServeError`].
pub async fn run<B: Backend>(
    session: impl Future<Output = SessionError>,
    keeper: &Keeper<B>,
    pool_bytes: u64,
    failed: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    // Memory is overwritten and checked at far more than 1 GiB/s.
    let drain_limit = Duration::from_secs(10 + (pool_bytes >> 30));
    let mut signals = Signals::new().map_err(|source| ServeError::System { what: "signals", source })?;
    let mut session = pin!(session);
    let device_failed = tokio::select! {
        error = &mut session => return Err(error.into()),
        () = signals.next() => {
            tracing::info!("shutting down: all leases end now");
            false
        }
        () = failed => {
            tracing::error!("the device has failed: all leases end now, and the provider stops");
            true
        }
    };
    // The session goes on meanwhile: orders are answered, receipts delivered. Its own end no longer matters.
    let session = async {
        session.await;
        pending::<()>().await;
    };
    let clean = async {
        let drained = timeout(drain_limit, keeper.drain()).await.is_ok();
        let all_delivered = async {
            while !keeper.receipts(None, 1).await.is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(LAST_RECEIPTS, all_delivered).await.is_err() {
            tracing::warn!("the auth daemon has not taken every receipt");
        }
        drained
    };
    let drained = tokio::select! {
        drained = clean => drained,
        () = session => false,
        () = signals.next() => false,
    };
    let free = keeper.look().await.map_or(0, |(heartbeat, _)| heartbeat.free_bytes);
    let bytes = pool_bytes - free;
    match (device_failed, drained && bytes == 0) {
        (true, _) => Err(ServeError::DeviceFailed { unclean: bytes }),
        (false, true) => Ok(()),
        (false, false) => Err(ServeError::Unclean { bytes }),
    }
}

struct Signals(Signal, Signal);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// The address from which a connection to the auth daemon leaves. Asks the routing table alone: no packet is sent.
fn local_address(authd: &str) -> io::Result<IpAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for peer in authd.to_socket_addrs()? {
        let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let routed = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
            socket.connect(peer)?;
            socket.local_addr()
        });
        match routed {
            Ok(local) => return Ok(local.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn say(line: &str) {
    let mut stdout = io::stdout();
    // Nobody listens where this fails.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
